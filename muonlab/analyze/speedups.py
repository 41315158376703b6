"""Speedups of a whole table of runs: at every size and length, and by a joint law at sizes that were not run."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from muonlab.analyze.cells import Cell, best_cells, choose_baseline, early_notes, lost_notes, seed_noise
from muonlab.analyze.findings import SpeedupRow
from muonlab.analyze.runs import Run, ends
from muonlab.analyze.scaling import JointLaw, fit_joint_law, redrawn_joint_laws
from muonlab.analyze.significance import LEVEL, Noise
from muonlab.analyze.speedup import ArmLosses, Selection, bootstrap, finite, fit_data_law, read_off
from muonlab.errors import UsageError

__all__ = ["At", "Extrapolation", "SpeedupTable", "speedup_row", "speedup_table"]

TOKENS_PER_PARAM = 20  # 1x Chinchilla [Hoffmann et al. 2022]
MIN_LENGTHS = 3  # of the baseline, to fit a law
SINGLE = Selection(means=(0.0,), num_seeds=(1,))


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """The speedup that joint laws give where nothing was run."""

    optimizer: str
    params: float
    tokens: float
    loss: float
    speedup: float | None
    low: float | None
    high: float | None
    factor_params: float  # how far beyond the runs, at least 1
    factor_tokens: float


@dataclass(frozen=True)
class At:
    """A size and length to extrapolate to."""

    params: float
    tokens: float


@dataclass(frozen=True, kw_only=True)
class SpeedupTable:
    """The finding of `speedup`: rows, the baseline's laws they rest on, and what was assumed."""

    baseline: str
    rows: tuple[SpeedupRow, ...]
    fits: Mapping[str, Mapping[str, float]]  # size -> a, b, exponent, of loss = a (tokens / scale_tokens)^-exponent + b
    joint: Mapping[str, Mapping[str, float]]  # optimizer -> E, A, B, alpha, beta
    extrapolations: tuple[Extrapolation, ...]
    noise_nats: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def speedup_table(
    runs: Sequence[Run], baseline: str, *, noise_nats: float | None = None, at: Sequence[At] = ()
) -> SpeedupTable:
    """Speedup of every optimizer over `baseline`, in tokens, at every size where the baseline has three lengths.

    Math     per size L(D) = a D^-exponent + b of the tuned baseline; speedup = L^-1(loss) / D
    Raises   UsageError for a baseline that is not there or has nowhere three lengths, and for runs without seeds
             where no `noise_nats` is assumed
    Source   Wen et al. 2025; the interval, a parametric bootstrap of seeds and fit, is ours
    """
    kept = ends(runs)
    choose_baseline(baseline, kept)
    cells = best_cells(kept)
    notes = [*early_notes(runs, kept), *lost_notes(kept), *_noise_notes(cells.values(), noise_nats)]
    noise = seed_noise(cells.values(), noise_nats)
    rows, fits = [], {}
    for size in dict.fromkeys(cell.size for cell in cells.values()):
        here = sorted((cell for cell in cells.values() if cell.size == size), key=lambda cell: cell.tokens)
        law_cells = [cell for cell in here if cell.optimizer == baseline]
        if len(law_cells) >= MIN_LENGTHS:
            fits[size] = _law(law_cells, noise)
        else:
            notes.append(f"{size}: no speedup, {baseline} has {len(law_cells)} of the three lengths that a law needs")
        rows += [speedup_row(cell, law_cells, noise) for cell in here if cell.optimizer != baseline]
    if not fits:
        raise UsageError(f"not identifiable: {baseline} has at no size the three lengths that a law needs")
    joint, extrapolations = _extrapolate(list(cells.values()), baseline, noise, at, notes)
    return SpeedupTable(
        baseline=baseline,
        rows=tuple(sorted(rows, key=lambda row: (row.params or 0.0, row.size, row.tokens, row.loss))),
        fits=fits,
        joint=joint,
        extrapolations=extrapolations,
        noise_nats=math.sqrt(noise.variance),
        notes=tuple(notes),
    )


def _noise_notes(cells: Iterable[Cell], noise_nats: float | None) -> list[str]:
    if noise_nats is None:
        return []
    if any(len(cell.losses) > 1 for cell in cells):
        return [f"intervals assume a noise of {noise_nats:g} nats between seeds, not that of the seeds there are"]
    return [f"there are no seeds: intervals assume a noise of {noise_nats:g} nats between them"]


def _arm(cells: Sequence[Cell], noise: Noise) -> ArmLosses:
    return ArmLosses(
        tokens=[cell.tokens for cell in cells],
        means=[cell.mean for cell in cells],
        num_seeds=[len(cell.losses) for cell in cells],
        noises=[noise] * len(cells),
        selection=SINGLE,
    )


def _law(cells: Sequence[Cell], noise: Noise) -> dict[str, float]:
    arm = _arm(cells, noise)
    law = fit_data_law(arm.tokens, np.asarray(arm.means), arm.variances)
    return {**law.per(cells[0].tokens), "num_lengths": len(cells)}


def speedup_row(cell: Cell, baseline: Sequence[Cell], noise: Noise) -> SpeedupRow:
    """The speedup of one cell by the law through the baseline's cells at that size, from the shortest."""
    enough = len(baseline) >= MIN_LENGTHS
    found = bootstrap(_arm(baseline, noise), _arm([cell], noise)) if enough else None
    point, low, high, flag = read_off(found, cell.tokens, [other.tokens for other in baseline])
    return SpeedupRow(
        optimizer=cell.optimizer,
        size=cell.size,
        params=cell.params,
        tokens=cell.tokens,
        loss=cell.mean,
        num_seeds=len(cell.losses),
        num_configurations=cell.num_configurations,
        speedup=point,
        low=low,
        high=high,
        flag=flag,
    )


def _extrapolate(
    cells: Sequence[Cell], baseline: str, noise: Noise, at: Sequence[At], notes: list[str]
) -> tuple[dict[str, dict[str, float]], tuple[Extrapolation, ...]]:
    by_optimizer: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.params is not None:
            by_optimizer[cell.optimizer].append(cell)
    laws: dict[str, JointLaw] = {}
    for name, own in by_optimizer.items():
        try:
            laws[name] = _joint(own)
        except UsageError as error:
            if at:
                notes.append(f"{name} is not extrapolated: {error}")
    joint = {name: {key: float(value) for key, value in law.parameters().items()} for name, law in laws.items()}
    if not at or baseline not in laws:
        return joint, ()
    redrawn = {name: _redraw(law, by_optimizer[name], noise) for name, law in laws.items()}
    found = [
        _at(place, name, baseline, laws, redrawn, [*by_optimizer[name], *by_optimizer[baseline]])
        for place in at
        for name in laws
        if name != baseline
    ]
    return joint, tuple(found)


def _joint(cells: Sequence[Cell]) -> JointLaw:
    columns = ((float(cell.params or 0.0), cell.tokens, cell.mean) for cell in cells)
    params, tokens, losses = (np.array(column) for column in zip(*columns, strict=True))
    return fit_joint_law(params, tokens, losses)


def _redraw(law: JointLaw, cells: Sequence[Cell], noise: Noise) -> JointLaw:
    """The law of losses drawn anew around it, as noisy as seeds and as the law's own misfit."""
    params = np.array([float(cell.params or 0.0) for cell in cells])
    tokens = np.array([cell.tokens for cell in cells])
    misfit = np.array([cell.mean for cell in cells]) - law.loss(params, tokens)
    degrees = max(1, len(cells) - law.theta.shape[-1])
    seeds = noise.variance / np.array([len(cell.losses) for cell in cells])
    deviation = np.sqrt(np.maximum(seeds, float(misfit @ misfit) / degrees))
    return redrawn_joint_laws(law, params, tokens, deviation)


def _at(
    place: At, name: str, baseline: str, laws: Mapping[str, JointLaw], redrawn: Mapping[str, JointLaw],
    cells: Sequence[Cell],
) -> Extrapolation:  # fmt: skip
    loss = float(laws[name].loss(place.params, place.tokens))
    point = float(laws[baseline].tokens_for(place.params, loss)) / place.tokens
    losses = redrawn[name].loss(place.params, place.tokens)
    replicates = redrawn[baseline].tokens_for(place.params, losses) / place.tokens
    tail = (1 - LEVEL) / 2
    low, high = (finite(float(np.quantile(replicates, q, method="nearest"))) for q in (tail, 1 - tail))
    sizes, lengths = [float(cell.params or 0.0) for cell in cells], [cell.tokens for cell in cells]
    return Extrapolation(
        optimizer=name,
        params=place.params,
        tokens=place.tokens,
        loss=loss,
        speedup=finite(point),
        low=low,
        high=high,
        factor_params=max(1.0, place.params / max(sizes), min(sizes) / place.params),
        factor_tokens=max(1.0, place.tokens / max(lengths), min(lengths) / place.tokens),
    )
