"""A world in which outputs and updates grow with planted powers of the width, for the coordinate check and reports."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from muonlab.analyze.coordinates import CoordinateFinding, analyze
from muonlab.records import Record, RunSpec
from muonlab.records.coordinate_evidence import CoordinateEvidence
from muonlab.records.record import Series
from muonlab.records.watch import CHANGE, UPDATE
from muonlab.study.config import StudyConfig, validated
from muonlab.study.coordinates import CoordinatePlan, plan_coordinates
from muonlab.study.protocol import drive

WIDTHS, KINDS = (32, 64, 128, 256), ("standard", "mup", "spectral")
HIDDEN = ("blocks.0.mlp.up", "blocks.0.mlp.down", "blocks.1.mlp.up", "blocks.1.mlp.down")
LAYERS = ("embed", *HIDDEN, "head")


@dataclass
class World:
    """Makes records of specs by formula: value(layer, step) = own step (width / 32)^power, times noise."""

    change: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (optimizer, kind) -> power; 0 unless given
    update: Mapping[tuple[str, str], float] = field(default_factory=dict)
    noise: float = 0.03  # of a logarithm, between runs
    bend: float = 0.0  # times the square of log2(width / 32), added to logarithms
    trial: int = 0
    diverges: tuple[str, str, int] = ("", "", 0)  # optimizer, kind and width that lose their last step
    dead: str = ""  # a layer that never moves
    records: dict[str, Record] = field(default_factory=dict)

    def __call__(self, specs: Sequence[RunSpec]) -> dict[str, Record]:
        made = {spec.key: self.record(spec) for spec in specs}
        self.records |= made
        return made

    def record(self, spec: RunSpec) -> Record:
        width, pair = spec.get("task.width"), (spec.optimizer, spec.parametrization)
        rng = np.random.default_rng([self.trial, *spec.key.encode()])
        lost = (*pair, width) == self.diverges
        steps = (1, 2, 4) if lost else (1, 2, 4, 8)

        def series(power: float, own: float, prefix: str, layer: str) -> Series:
            doublings = math.log2(width / WIDTHS[0])
            luck = self.noise * rng.standard_normal() + self.bend * doublings**2
            size = 0.0 if layer == self.dead else own * math.exp(luck) * 2 ** (power * doublings)
            return Series(steps, tuple(size * (step if prefix == CHANGE else 1) for step in steps))

        probes = {
            f"{CHANGE}{layer}": series(self.change.get(pair, 0.0), 0.1 + 0.02 * i, CHANGE, layer)
            for i, layer in enumerate(LAYERS)
        }
        probes |= {
            f"{UPDATE}{layer}.weight": series(self.update.get(pair, 0.0), 0.01 + 0.001 * i, UPDATE, layer)
            for i, layer in enumerate(HIDDEN)
        }
        return Record(
            spec=spec, outcome="diverged" if lost else "ok", final_loss=None if lost else 2.0, probes=probes,
            diverged_step=5 if lost else None,
        )  # fmt: skip


def config(**values) -> StudyConfig:
    """Of the task "text", tiny."""
    return validated({"batch_tokens": 256, "settings": {"task.seq_len": 32}, **values}, StudyConfig)


def plan(widths: Sequence[int] = WIDTHS, kinds: Sequence[str] = KINDS, num_seeds: int = 3, **values) -> CoordinatePlan:
    return plan_coordinates(config(**values), widths=widths, parametrizations=kinds, num_seeds=num_seeds)


def checked(world: World, **values) -> tuple[CoordinateEvidence, CoordinateFinding]:
    """A whole check in that world."""
    evidence = drive(plan(**values).protocol({"asked": True}), world)
    return evidence, analyze(evidence, world.records)
