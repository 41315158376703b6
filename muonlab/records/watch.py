"""What is looked at while a run is made."""

from dataclasses import dataclass

from muonlab.errors import UsageError
from muonlab.records.record import Record
from muonlab.records.spec import RunSpec

__all__ = ["CHANGE", "CLEAN", "NOISE", "PROBED", "PROBE_COST", "RANK", "UPDATE", "Watch"]

CURVE_SPAN = 32  # a curve begins after this part of the run, and its points are evenly spaced in log tokens
CLEAN = "corrupted.clean.0"  # the loss on the sample that is corrupted, before it is
NOISE = ("noise.gradient_square", "noise.trace", "noise.gradient_nuclear", "noise.nuclear")
PROBED = ("probe.loss", "probe.accuracy")  # of a linear probe of the last layer before the first step
RANK = "rank."  # before the name of a layer
CHANGE, UPDATE = "change.", "update."  # before the name of a module, and of a parameter
PROBE_COST = 0.0125  # of the arithmetic, for noise and for ranks, where nothing else is asked for
MOST_COORDINATES = 256  # a longer series would be averaged


@dataclass(frozen=True)
class Watch:
    """What is looked at while a run is made, without changing it: no part of its key."""

    eval_steps: frozenset[int] = frozenset()  # after which the held-out loss is taken
    curve_points: int = 0  # so many more, evenly spaced in log tokens, the last at the end of the run
    noise_cost: float = 0.0  # part of the arithmetic that may go into gradient noise, `NOISE`; 0 = not measured
    rank_cost: float = 0.0  # the same of effective ranks by layer, `RANK`
    features: bool = False  # when the held-out loss is taken, also probe layers, corrupt inputs; at the end `grams`
    coordinates: frozenset[int] = frozenset()  # steps after which the coordinate check is taken, `CHANGE` and `UPDATE`
    probe: bool = False  # fit a linear probe to what the last layer gives before the first step, `PROBED`
    weights: bool = False  # leave the last weights where runs that start from them find them
    seeds: frozenset[int] = frozenset()  # of the runs that are looked at; none = all
    runs: frozenset[str] = frozenset()  # keys of those that are looked at; none = all
    tasks: frozenset[tuple[str, str]] = frozenset()  # task and data fingerprint of these runs; none = all
    other: "Watch | None" = None  # what is looked at in all other runs

    def __post_init__(self) -> None:
        if min(self.coordinates, default=1) < 1 or len(self.coordinates) > MOST_COORDINATES:
            raise UsageError(f"the coordinate check is taken after at most {MOST_COORDINATES} steps, counted from 1")

    def of(self, spec: RunSpec) -> "Watch":
        """What is looked at in that run."""
        mine = not self.seeds or spec.seed in self.seeds
        mine &= not self.tasks or (spec.task, spec.data_fingerprint) in self.tasks
        mine &= not self.runs or spec.key in self.runs
        return self if mine else self.other.of(spec) if self.other else Watch()

    def steps(self, spec: RunSpec) -> frozenset[int]:
        """After which the held-out loss is taken, and what the task measures.

        >>> spec = RunSpec(task="text", optimizer="muon", horizon_tokens=3200, batch_tokens=100)
        >>> sorted(Watch(curve_points=6).steps(spec))
        [1, 2, 4, 8, 16, 32]
        """
        last = max(1, self.curve_points - 1)
        curve = {max(1, round(spec.num_steps * CURVE_SPAN ** (i / last - 1))) for i in range(self.curve_points)}
        return self.eval_steps | frozenset(curve)

    def coordinate_steps(self, spec: RunSpec) -> frozenset[int]:
        """Those of the coordinate check that the run has."""
        return frozenset(step for step in self.coordinates if step <= spec.num_steps)

    def seen_in(self, record: Record) -> bool:
        """Whether a record already holds everything that is asked for."""
        asked = self.of(record.spec)
        probes = not asked.noise_cost or set(NOISE) <= set(record.probes)
        probes &= not asked.rank_cost or any(name.startswith(RANK) for name in record.probes)
        probes &= not asked.features or (CLEAN in record.probes and bool(record.grams))
        probes &= not asked.probe or set(PROBED) <= set(record.probes)
        found = [series for name, series in record.probes.items() if name.startswith((CHANGE, UPDATE))]
        probes &= asked.coordinate_steps(record.spec) <= {step for series in found for step in series.steps}
        return record.outcome == "diverged" or (probes and asked.steps(record.spec) <= set(record.eval_steps))
