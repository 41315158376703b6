"""A record to put into stores."""

from collections.abc import Callable
from typing import Any

import pytest

from muonlab.records import Record, RunSpec


@pytest.fixture(scope="session")
def make() -> Callable[..., Record]:
    """A record by seed; keywords go to the spec or to the record, whichever has the field."""

    def make_record(seed: int = 0, **values: Any) -> Record:
        own = {name: values.pop(name) for name in list(values) if name in Record.__dataclass_fields__}
        spec = {"task": "text", "optimizer": "adamw", "horizon_tokens": 4096, "batch_tokens": 512, **values}
        spec.setdefault("hyperparameters", {"opt.lr": 0.003, "opt.betas": (0.9, 0.95)})
        own.setdefault("outcome", "ok")
        if own["outcome"] == "ok":
            own.setdefault("final_loss", 3.0 + 0.1 * seed)
        own.setdefault("train_steps", (1, 2, 3))
        own.setdefault("train_loss", (4.5, 4.1 / 3, 0.1 + 0.2))
        return Record(spec=RunSpec(seed=seed, **spec), tokens=4096, params={"hidden": 1000, "head": 200}, **own)

    return make_record
