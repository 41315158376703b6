"""The transfer study: hyperparameters tuned on narrow models, followed to wide ones, and how far they move."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from muonlab.analyze.tracking import Track, surface, track
from muonlab.errors import UsageError
from muonlab.optim.rule import Hyperparameter
from muonlab.records import Record, RunSpec
from muonlab.records.evidence import Trial
from muonlab.records.spec import Value
from muonlab.records.transfer_evidence import TransferArm, TransferEvidence, TransferStage
from muonlab.study.protocol import Protocol, gather
from muonlab.study.telescoping import (
    Axis,
    allowed,
    first_axis,
    log_place,
    mesh,
    next_axis,
    num_points,
    value_at,
    within_bounds,
)

__all__ = ["Subject", "TransferRules", "transfer"]

LR = "opt.lr"
LEAST_WIDTHS = 3  # that are meshed, with two points an axis at least: two optima leave nothing over to tell a drift by


@dataclass(frozen=True, kw_only=True)
class TransferRules:
    """What a transfer study does, the same for every arm."""

    baseline: str  # name of an arm
    widths: tuple[int, ...]  # ascending, of telescoping and of the survey
    final_width: int | None = None  # None: no telescoping
    survey: bool = False
    points: int = 7  # per axis at the first width
    ratio: float = 2.0  # between neighbours there
    seeds: tuple[int, ...] = (1000, 1001)  # of every point of a mesh; never those of the final runs
    final_seeds: tuple[int, ...] = (0, 1, 2)
    max_extensions: int = 4  # of one axis at one width
    max_runs: int = 2000  # of an arm, without the final ones; beyond it no mesh is extended

    def __post_init__(self) -> None:
        if shared := sorted(set(self.final_seeds) & set(self.seeds)):
            raise UsageError(f"final seeds must not be used for tuning: {shared} are")

    def stages(self, num_axes: int) -> list[tuple[int, int]]:
        """(width, points per axis) of the meshes before any extension; where one point is left nothing is chosen.

        Differs  from Essential AI 2025, whose meshes cost the same at every width and end where that leaves one point:
                 with one axis after two widths, whose drift then fits both exactly, whatever the errors
        """
        counts = [num_points(self.points, self.widths[0], width, num_axes) for width in self.widths]
        counts[:LEAST_WIDTHS] = [max(2, count) for count in counts[:LEAST_WIDTHS]]
        return [(width, count) for width, count in zip(self.widths, counts, strict=True) if count > 1]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One arm to run: its run at every width, all hyperparameters where tuning starts."""

    name: str
    optimizer: str
    parametrization: str
    space: tuple[Hyperparameter, ...]  # the axes; opt.lr first
    specs: Mapping[int, RunSpec]  # width -> run


def transfer(
    subjects: Sequence[Subject], rules: TransferRules, config: Mapping[str, object] | None = None
) -> Protocol[TransferEvidence]:
    """Telescope every subject to the final width, and survey lr at every width if asked.

    Telescoping:
    1. The whole log mesh at the first width, every point on all tuning seeds.
    2. At each wider one a mesh that costs as much: fewer points an axis, in the window of the optimum's cell plus the
       drift that may be. It is extended where the optimum lies on an edge. Where one point an axis is left, no run is
       made: there is nothing to choose between.
    3. The optimum by a parabola with one curvature for all widths; its drift x* - a / n; by that on to the next width,
       and in the end to the final one, on fresh seeds.

    Source   Essential AI 2025 (2505.02222), algorithm 1
    Differs  from it in the windows (`telescoping.next_axis`), in the parabola for the argmin, in the drift, which it
             does not extrapolate, in seeds and in extended windows
    """
    protocols = {f"telescope {s.name}": _Arm(s, rules).telescope() for s in subjects if rules.final_width is not None}
    protocols |= {
        f"survey {s.name} {width}": _Arm(s, rules).survey(width)
        for s in subjects
        for width in rules.widths
        if rules.survey
    }
    found = yield from gather(protocols)
    arms = []
    for subject in subjects:
        arm = found.get(f"telescope {subject.name}") or _Arm(subject, rules).named()
        stages = [found[name] for width in rules.widths if (name := f"survey {subject.name} {width}") in found]
        arms.append(replace(arm, survey=tuple(stages)))
    return TransferEvidence(
        task=next(iter(subjects[0].specs.values())).task,
        baseline=rules.baseline,
        arms=tuple(arms),
        widths=rules.widths,
        final_width=rules.final_width,
        points=rules.points,
        tuning_seeds=rules.seeds,
        final_seeds=rules.final_seeds if rules.final_width is not None else (),
        config=dict(config or {}),
    )


@dataclass
class _Arm:
    """One subject on its way; each of its protocols is run on an arm of its own."""

    subject: Subject
    rules: TransferRules
    seen: dict[str, Record] = field(default_factory=dict)
    specs: dict[str, RunSpec] = field(default_factory=dict)
    asked: dict[tuple[Value, ...], tuple[str, ...]] = field(default_factory=dict)  # width, values -> keys
    stages: list[TransferStage] = field(default_factory=list)

    def named(self) -> TransferArm:
        subject = self.subject
        return TransferArm(
            name=subject.name, optimizer=subject.optimizer, parametrization=subject.parametrization,
            axes={h.name: h.log for h in subject.space},
        )  # fmt: skip

    def telescope(self) -> Protocol[TransferArm]:
        """To the final width; no further than where every run of a mesh diverges."""
        found: Track | None = None
        for width, points in self.rules.stages(len(self.subject.space)):
            axes = self._first(self.subject.space) if found is None else self._next(found, width, points)
            self.stages.append((yield from self._sweep(width, axes, self.subject.space)))
            found = track(self.stages, self.named().axes, self.seen)
            if found is None:
                return replace(self.named(), stages=tuple(self.stages))
        final = self.rules.final_width
        assert final is not None and found is not None
        settings = self._settings(found, final)
        specs = [self.subject.specs[final].set({**settings, "seed": seed}) for seed in self.rules.final_seeds]
        yield specs
        return replace(
            self.named(), stages=tuple(self.stages), settings=settings, final=tuple(spec.key for spec in specs)
        )

    def survey(self, width: int) -> Protocol[TransferStage]:
        """The whole mesh of lr at one width, all else where tuning starts."""
        space = self.subject.space[:1]
        return (yield from self._sweep(width, self._first(space), space))

    def _first(self, space: Sequence[Hyperparameter]) -> dict[str, Axis]:
        axes = {h.name: first_axis(log_place(h, h.default), self.rules.ratio, self.rules.points) for h in space}
        return {h.name: within_bounds(axes[h.name], h) for h in space}

    def _next(self, found: Track, width: int, points: int) -> dict[str, Axis]:
        last = found.widths[-1]
        parts = zip(
            self.subject.space, found.at(width), found.surfaces[-1].steps, found.slack(last, width), strict=True
        )
        return {h.name: within_bounds(next_axis(float(c), float(s), float(d), points), h) for h, c, s, d in parts}

    def _settings(self, found: Track, width: int) -> dict[str, Value]:
        """What is expected to be best at a width; where that is no value at all, what was at the last one."""
        settings = {}
        for h, expected, last in zip(self.subject.space, found.at(width), found.bowl.optima[-1].place, strict=True):
            settings[h.name] = value_at(h, float(expected if allowed(h, float(expected)) else last))
        return settings

    def _sweep(self, width: int, axes: dict[str, Axis], space: Sequence[Hyperparameter]) -> Protocol[TransferStage]:
        """A mesh on all tuning seeds, extended where the optimum lies on an edge."""
        extended: dict[str, int] = {}
        while True:
            points = mesh(axes, space)
            trials = tuple(Trial(settings=point, keys=self._keys(width, point)) for point in points)
            missing = [key for trial in trials for key in trial.keys if key not in self.seen]
            if missing:
                self.seen |= yield [self.specs[key] for key in missing]
            stage = TransferStage(
                width=width,
                points={name: axis.count for name, axis in axes.items()},
                steps={name: axis.step for name, axis in axes.items()},
                trials=trials,
                extended=extended,
            )
            sides = self._open(stage, axes, space)
            free = {name: side for name, side in sides.items() if extended.get(name, 0) < self.rules.max_extensions}
            wider = {name: axes[name].extended(side) for name, side in free.items()}
            if not free or len(self.seen) + self._more(axes, wider) > self.rules.max_runs:
                return replace(stage, edges=tuple(sides))
            axes = {**axes, **wider}
            extended = {**extended, **{name: extended.get(name, 0) + 1 for name in free}}

    def _keys(self, width: int, settings: Mapping[str, Value]) -> tuple[str, ...]:
        """Of the runs of a point on all tuning seeds, whose specs are then in `specs`."""
        point = (width, *settings.values())
        if point not in self.asked:
            specs = [self.subject.specs[width].set({**settings, "seed": seed}) for seed in self.rules.seeds]
            by_key = {spec.key: spec for spec in specs}
            self.specs |= by_key
            self.asked[point] = tuple(by_key)
        return self.asked[point]

    def _more(self, axes: Mapping[str, Axis], wider: Mapping[str, Axis]) -> int:
        """Runs that the wider axes add."""
        before, after = (np.prod([axis.count for axis in one.values()]) for one in (axes, {**axes, **wider}))
        return int(after - before) * len(self.rules.seeds)

    def _open(self, stage: TransferStage, axes: Mapping[str, Axis], space: Sequence[Hyperparameter]) -> dict[str, str]:
        """Axis -> the side on which the optimum lies on an edge of the window that is no bound of the hyperparameter.

        At the first width that is an edge of the mesh. Later meshes are small, and the curvature is known: there the
        vertex of the parabola decides. Where all runs diverged the optimum is at a lower lr, if anywhere.
        """
        logs = {h.name: h.log for h in space}
        here = surface(stage, logs, self.seen)
        if not np.isfinite(here.losses[here.best]):
            return {LR: "low"}
        found = track([*self.stages, stage], logs, self.seen)
        vertex = None if found is None or not self.stages else found.bowl.optima[-1].vertex
        sides = {}
        for i, h in enumerate(space):
            axis, at = axes[h.name], here.points[here.best, i]
            if vertex is not None:
                ends = (vertex[i] < axis.low, vertex[i] > axis.high)
            else:
                ends = (at < axis.low + axis.step, at > axis.high - axis.step)
            side = "low" if ends[0] else "high" if ends[1] else ""
            if side and axis.count > 1 and allowed(h, axis.extended(side).points[0 if side == "low" else -1]):
                sides[h.name] = side
        return sides
