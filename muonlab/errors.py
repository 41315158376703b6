"""Errors that the user can mend. Anything else that is raised is a defect of muonlab."""

import difflib
from collections.abc import Iterable

__all__ = ["UsageError", "unknown"]


MOST = 40  # valid names that an error lists


class UsageError(ValueError):
    """Bad input; its text is one line that says what to do. The CLI prints it without a traceback and exits with 2."""


def unknown(kind: str, name: object, valid: Iterable[str]) -> UsageError:
    """The error for a name that does not exist, naming the nearest valid one.

    >>> print(unknown("optimizer", "muno", ["adamw", "muon"]))
    unknown optimizer 'muno': did you mean 'muon'? (valid: adamw, muon)
    """
    names = sorted(valid)
    shown = ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'?" if near else ""
    return UsageError(f"unknown {kind} {str(name)!r}{hint} (valid: {shown})")
