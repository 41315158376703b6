"""Evidence made by hand, with numbers that can be recomputed on paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from muonlab.records import Record, RunSpec
from muonlab.records.evidence import Arm, Cell, Evidence, Trial, Tuning

H = 1024  # horizon of the comparison
BATCH = 64


@dataclass
class Story:
    """Builds evidence and its records, cell by cell."""

    records: dict[str, Record] = field(default_factory=dict)
    cells: dict[str, list[Cell]] = field(default_factory=dict)

    def run(
        self, optimizer: str, horizon_tokens: int, seed: int, settings: Mapping, loss: float | None, **values
    ) -> str:
        """A record; loss None is a diverged run."""
        spec = RunSpec(
            task="made-up", optimizer=optimizer, horizon_tokens=horizon_tokens, batch_tokens=BATCH, seed=seed,
            hyperparameters=settings,
        )  # fmt: skip
        values = {
            "outcome": "diverged" if loss is None else "ok", "final_loss": loss, "tokens": horizon_tokens,
            "step_seconds": 0.5, "environment": {"machine": "one"}, "params": {"hidden": 10, "head": 5},
            "train_steps": (1, 2), "train_loss": (4.0, 3.0), **values,
        }  # fmt: skip
        self.records[spec.key] = Record(spec=spec, **values)
        return spec.key

    def cell(
        self,
        optimizer: str,
        losses: Sequence[float | None],
        *,
        horizon_tokens: int = H,
        best: Mapping | None = None,
        trials: Sequence[tuple[Mapping, Sequence[float | None]]] = (),
        **values,
    ) -> None:
        best = dict(best or {"opt.lr": 0.01})
        keys = tuple(self.run(optimizer, horizon_tokens, seed, best, x, **values) for seed, x in enumerate(losses))
        tried = tuple(
            Trial(
                settings=settings,
                keys=tuple(self.run(optimizer, horizon_tokens, 1000 + s, settings, x) for s, x in enumerate(found)),
            )
            for settings, found in trials
        )
        tuning = Tuning(
            optimizer=optimizer, horizon_tokens=horizon_tokens, coordinates=tuple(best), best=best, trials=tried,
            moves=(), edges=(), converged=True, num_runs=sum(len(t.keys) for t in tried),
            tokens=horizon_tokens * sum(len(t.keys) for t in tried),
        )  # fmt: skip
        cell = Cell(horizon_tokens=horizon_tokens, settings=best, keys=keys, tuning=tuning)
        self.cells.setdefault(optimizer, []).append(cell)

    def evidence(self, baseline: str = "base") -> Evidence:
        arms = {
            name: Arm(name=name, cells=tuple(sorted(cells, key=lambda c: c.horizon_tokens)))
            for name, cells in self.cells.items()
        }
        return Evidence(task="made-up", baseline=baseline, horizon_tokens=H, arms=arms, config={"note": "by hand"})

    def alter(self, key: str, **changes) -> None:
        self.records[key] = replace(self.records[key], **changes)


@pytest.fixture
def story() -> Story:
    return Story()
