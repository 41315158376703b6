"""muonlab: fair optimizer experiments, and the optimizers to use afterwards.

Importing the package imports nothing else; the names below load torch when they are first used.

>>> import muonlab
>>> muonlab.Role.HIDDEN
<Role.HIDDEN: 'hidden'>
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_OPTIMIZERS = (
    "ADOPT",
    "MARS",
    "SGD",
    "SOAP",
    "AdEMAMix",
    "AdaMuon",
    "AdamHyperball",
    "AdamMini",
    "AdamW",
    "CautiousAdamW",
    "Kron",
    "Lion",
    "Muon",
    "MuonHyperball",
    "NAdamW",
    "NorMuon",
    "OrthogonalSGDM",
    "SOAPMuon",
    "Scion",
    "Shampoo",
    "Signum",
    "Sophia",
)
_HOMES = dict.fromkeys((*_OPTIMIZERS, "parametrize"), "muonlab.optim") | {"Role": "muonlab.roles"}

__all__ = ["Role", "__version__", "parametrize", *_OPTIMIZERS]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'muonlab' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
