"""What a run is (RunSpec), what it gave (Record), and where both are kept (Store)."""

from muonlab.records.record import Record
from muonlab.records.spec import RunSpec, Schedule

__all__ = ["Record", "RunSpec", "Schedule"]
