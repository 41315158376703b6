"""What a run is (RunSpec), what it gave (Record), and where both are kept (Store)."""

from typing import TYPE_CHECKING, Any

from muonlab.records.record import Record
from muonlab.records.spec import RunSpec, Schedule

if TYPE_CHECKING:
    from muonlab.records.store import Store, StoreError

__all__ = ["Record", "RunSpec", "Schedule", "Store", "StoreError"]


def __getattr__(name: str) -> Any:
    if name in ("Store", "StoreError"):  # sqlalchemy takes 0.2 s to import, and a run's own process does not need it
        from muonlab.records import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
