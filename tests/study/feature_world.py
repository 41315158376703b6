"""A study of features whose runs were made up: what is planted in them is known."""

import zlib
from collections.abc import Sequence

import numpy as np

from muonlab.records import Record, RunSpec
from muonlab.records.evidence import Arm, Cell, Trial, Tuning
from muonlab.records.features import FeaturesEvidence
from muonlab.records.grams import pack_gram
from muonlab.records.record import Series

STEPS = (10, 20, 40, 80)
LAYERS = ("blocks.0", "blocks.1", "blocks.2")
SEVERITIES = (1, 2, 3, 4, 5)


class World:
    """Every optimizer is `gain` times its place better than the first, the baseline; seeds differ by `noise`."""

    def __init__(
        self, names: Sequence[str] = ("adamw", "muon", "sgd"), *, gain: float = 0.3, noise: float = 0.01,
        classes: bool = True, corruptions: Sequence[str] = ("noise", "blur"), grams: bool = True, num_seeds: int = 3,
        lost: bool = False,
    ) -> None:  # fmt: skip
        self.names, self.gain, self.noise, self.classes, self.grams = tuple(names), gain, noise, classes, grams
        self.corruptions, self.seeds, self.lost = tuple(corruptions), tuple(range(num_seeds)), lost
        self.records: dict[str, Record] = {}

    def run(self, name: str, seed: int, decay: float, lr: float = 0.1) -> Record:
        ahead = self.gain * self.names.index(name)
        random = np.random.default_rng(zlib.crc32(f"{name} {seed} {decay}".encode()))
        wiggle = self.noise * random.standard_normal()
        losses = np.array([2.0, 1.5, 1.0, 0.6]) - 0.5 * ahead + wiggle
        probes = {
            f"features.{layer}.{measure}": (top * (i + 1) * (1 + ahead) + wiggle) * np.linspace(0.5, 1.0, len(STEPS))
            for i, layer in enumerate(LAYERS)
            for measure, top in (("rank_effective", 4.0), ("margin_normalised", 0.1), ("accuracy", 0.2))
        }
        for kind, severity in (("clean", 0), *((k, s) for k in self.corruptions for s in SEVERITIES)):
            lost = severity * (1 - 0.5 * ahead + self.noise * random.standard_normal())
            probes[f"corrupted.{kind}.{severity}"] = losses + 0.2 * lost
            if self.classes:
                probes[f"accuracy.{kind}.{severity}"] = 0.95 - 0.1 * losses - 0.08 * lost
        spec = RunSpec(
            task="digits", optimizer=name, horizon_tokens=80, batch_tokens=1, seed=seed,
            hyperparameters={"opt.weight_decay": decay, "opt.lr": lr},
        )  # fmt: skip
        gone = self.lost and (name, seed) == (self.names[-1], 0)
        return Record(
            spec=spec, outcome="diverged" if gone else "ok", final_loss=None if gone else float(losses[-1]),
            eval_steps=STEPS, eval_loss=tuple(losses), tokens=80, grams=self._grams(name, seed),
            probes={n: Series(STEPS, tuple(float(v) for v in values)) for n, values in probes.items()},
            environment={"machine": "made up", "python": "3"},
        )  # fmt: skip

    def _grams(self, name: str, seed: int) -> dict[str, str]:
        """States of an optimizer are alike; the deeper the layer, the less; each seed adds a third of noise."""
        found = {}
        for i, layer in enumerate(LAYERS if self.grams else ()):
            shared, own, noise = (
                np.random.default_rng(zlib.crc32(f"{layer} {what}".encode())).standard_normal((64, 12))
                for what in ("all", name, f"{name} {seed}")
            )
            found[layer] = pack_gram(shared + (i + 1) / 3 * own + noise / 3)
        return found

    def _arm(self, name: str, decay: float) -> Arm:
        runs = [self.run(name, seed, decay) for seed in self.seeds]
        tuning = [self.run(name, 1000, decay, lr) for lr in (0.05, 0.1, 0.2)]
        self.records |= {run.key: run for run in (*runs, *tuning)}
        settings = {"opt.lr": 0.1, "opt.weight_decay": decay}
        trials = tuple(
            Trial(settings={**settings, "opt.lr": run.spec.get("opt.lr")}, keys=(run.key,)) for run in tuning
        )
        tuned = Tuning(
            optimizer=name, horizon_tokens=80, coordinates=("opt.lr",), best=settings, trials=trials, moves=(),
            edges=(), converged=True, num_runs=len(tuning), tokens=240,
        )  # fmt: skip
        keys = tuple(run.key for run in runs)
        cell = Cell(horizon_tokens=80, settings=settings, keys=keys, tuning=tuned)
        return Arm(name=name, optimizer=name, cells=(cell,))

    def study(self) -> FeaturesEvidence:
        arms, controls = ({name: self._arm(name, decay) for name in self.names} for decay in (0.1, 0.0))
        return FeaturesEvidence(
            task="digits", baseline=self.names[0], horizon_tokens=80, final_seeds=self.seeds, tuning_seeds=(1000,),
            max_runs=20, arms=arms, controls=controls, config={"command": "muonlab features digits", "looks": 4},
        )  # fmt: skip
