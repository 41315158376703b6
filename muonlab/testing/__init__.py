"""The suite that every rule here passes, for rules of your own: `check(MyRule)`."""

from muonlab.testing.check import Failure, check
from muonlab.testing.rules import first_state, run

__all__ = ["Failure", "check", "first_state", "run"]
