"""The finding of a ladder as a real one gives it, made up from planted laws."""

import random
from collections.abc import Mapping
from dataclasses import replace

from muonlab.analyze.findings import Check, LossesAt, SpeedupRow
from muonlab.analyze.flips import Flip
from muonlab.analyze.ladder import ControlFinding, ForecastFinding, LadderFinding, RungFinding
from muonlab.analyze.laws import predict
from muonlab.analyze.sensitivity import Sensitivity

SIZES = {"64x2": 100_000, "128x4": 800_000, "256x6": 4_700_000}
RATIOS = (1.0, 2.0, 4.0)
SPEEDS = {"adamw": 1.0, "muon": 1.4, "lion": 0.8}
SEEDS = (0, 1, 2)
SHORTEST, LARGEST = RATIOS[0], "256x6"
TUNED = ("64x2 1x", "64x2 2x", "64x2 4x", "128x4 1x")  # regimes
CHECKS = (
    ("complete", "27 final runs, 0 diverged; 0 of all 180 runs failed"),
    ("same_conditions", "same model, data, data order per seed, precision, device"),
    ("fresh_seeds", "3 final seeds, 6 tuning seeds, disjoint"),
    ("same_tuning", "adamw: opt.lr, opt.momentum; muon: opt.lr, opt.momentum; lion: opt.lr, opt.momentum"),
    ("converged", "each tuning ended with a round without a move"),
    ("interior", "each optimum has tried neighbours on both sides"),
    ("own_schedule", "final losses only, each horizon with its own linear schedule"),
)


def floor_of(size: str) -> float:
    return 1.6 + 0.5 * (SIZES[size] / 1e5) ** -0.3


def horizon(size: str, ratio: float) -> int:
    return round(20 * SIZES[size] * ratio)


def loss_of(size: str, tokens: float) -> float:
    return floor_of(size) + 0.6 * (tokens / horizon(size, 1.0)) ** -0.4


def losses_at(name: str, size: str, ratio: float, settings: Mapping, speed: float) -> LossesAt:
    rng = random.Random(f"{name} {size} {ratio}")
    losses = tuple(loss_of(size, horizon(size, ratio) * speed) + rng.gauss(0, 0.004) for _ in SEEDS)
    mean = sum(losses) / len(losses)
    return LossesAt(
        horizon_tokens=horizon(size, ratio), seeds=SEEDS, losses=losses, mean=mean, low=mean - 0.008, high=mean + 0.008,
        keys=tuple(f"{rng.getrandbits(256):064x}" for _ in SEEDS), hyperparameters=settings,
    )  # fmt: skip


def tuned_lr(size: str, ratio: float, scale: float) -> float:
    """On a grid of powers of two."""
    return 0.032 * scale * 2.0 ** -round(0.6 * list(SIZES).index(size) + 0.4 * RATIOS.index(ratio))


def rungs_of(name: str, speed: float, scale: float) -> tuple[list[RungFinding], ForecastFinding]:
    points = [
        (SIZES[s], horizon(s, r), tuned_lr(s, r, scale)) for s in SIZES if s != LARGEST for r in RATIOS
    ]  # what a law is fitted to
    rungs = []
    for size in SIZES:
        for ratio in RATIOS:
            lr, origin = tuned_lr(size, ratio, scale), "tuned" if f"{size} {ratio:g}x" in TUNED else "retuned"
            if size == LARGEST:
                lr, origin = predict(points, SIZES[size], horizon(size, ratio), "opt.lr"), "predicted"
            settings = {"opt.lr": lr, "opt.momentum": 0.9}
            losses = losses_at(name, size, ratio, settings, speed)
            rungs.append(
                RungFinding(
                    optimizer=name, size=size, params=SIZES[size], ratio=ratio, origin=origin, losses=losses
                )
            )  # fmt: skip
    first = next(rung for rung in rungs if (rung.size, rung.ratio) == (LARGEST, SHORTEST))
    predicted = first.losses.hyperparameters
    forecast = ForecastFinding(
        optimizer=name, size=LARGEST, ratio=SHORTEST, predicted=predicted, found=predicted,
        predicted_loss=first.losses.mean, found_loss=first.losses.mean, difference_nats=0.0, low=None, high=None,
    )  # fmt: skip
    return rungs, forecast


def moved(forecast: ForecastFinding) -> ForecastFinding:
    """Had a search left the prediction."""
    found = {**forecast.predicted, "opt.lr": 2 * forecast.predicted["opt.lr"]}
    return replace(
        forecast, found=found, found_loss=forecast.predicted_loss - 0.0123, difference_nats=0.0123, low=0.0041,
        high=0.0205,
    )  # fmt: skip


def row_of(rung: RungFinding, speed: float, **changes) -> SpeedupRow:
    values = {
        "optimizer": rung.optimizer, "size": rung.size, "params": rung.params, "tokens": rung.losses.horizon_tokens,
        "loss": rung.losses.mean, "num_seeds": 3, "num_configurations": 17, "speedup": speed, "low": 0.9 * speed,
        "high": 1.1 * speed, "flag": "", "judgement": "better" if speed > 1 else "worse",
    }  # fmt: skip
    return SpeedupRow(**{**values, **changes})


def sensitivity_of(name: str, scale: float) -> tuple[Sensitivity, ...]:
    rates = {regime: (0.064 * scale, 0.032 * scale) if i < 2 else (0.016 * scale,) for i, regime in enumerate(TUNED)}
    momenta = dict.fromkeys(TUNED[1:], (0.95, 0.9))
    return (
        Sensitivity(coordinate="opt.lr", near_optimal=rates, shared=()),
        Sensitivity(coordinate="opt.momentum", near_optimal=momenta, shared=(0.9, 0.95)),
    )


def control_of(name: str, giver: str, size: str, difference: float | None, **changes) -> ControlFinding:
    known = difference is not None
    values = {
        "optimizer": name, "settings_of": giver, "size": size, "ratio": SHORTEST,
        "loss": loss_of(size, horizon(size, SHORTEST)) + difference if known else None, "difference_nats": difference,
        "low": difference - 0.01 if known else None, "high": difference + 0.01 if known else None,
        "speedup": 1.0 + 6.5 * difference if known else None, "num_diverged": 0 if known else 2,
    }  # fmt: skip
    return ControlFinding(**{**values, **changes})


def controls_of(names) -> tuple[ControlFinding, ...]:
    found = [control_of(name, "", size, 0.3 + 0.1 * i) for i, name in enumerate(names) for size in SIZES]
    found[-1] = control_of(list(names)[-1], "", LARGEST, None)
    swaps = [control_of(n, g, "64x2", 0.05 * (i - 1)) for i, n in enumerate(names) for g in names if n != g]
    if swaps:
        swaps[-1] = control_of(swaps[-1].optimizer, swaps[-1].settings_of, "64x2", None, num_diverged=3)
    return (*found, *swaps)


def make_ladder(speeds: Mapping[str, float] = SPEEDS, **changes) -> LadderFinding:
    """A baseline and challengers with every kind of result."""
    rungs, rows, forecasts = [], [], []
    for i, (name, speed) in enumerate(speeds.items()):
        own, forecast = rungs_of(name, speed, 1.0 + i)
        rungs += own
        forecasts.append(moved(forecast) if name == "muon" else forecast)
        rows += [row_of(rung, speed) for rung in own if name != "adamw"]
    rows.sort(key=lambda row: (row.params, row.tokens))
    if rows:
        rows[0] = replace(rows[0], judgement="unresolved", low=0.8, high=None)
        rows[-2] = replace(rows[-2], flag="extrapolated")
        rows[-1] = replace(rows[-1], speedup=None, low=None, high=None, flag="undefined")
    law = {"a": 0.6, "exponent": 0.4, "num_lengths": 3}
    values = {
        "verdict": "muon against tuned adamw: better at 8 of 9 sizes and lengths: 1.40x [1.26, 1.54] at 64x2.",
        "task": "text", "baseline": "adamw", "sizes": SIZES, "ratios": RATIOS, "rows": tuple(rows),
        "fits": {size: {**law, "b": floor_of(size), "scale_tokens": horizon(size, 1.0)} for size in SIZES},
        "rungs": tuple(rungs), "sensitivity": {name: sensitivity_of(name, 1.0 + i) for i, name in enumerate(speeds)},
        "forecasts": tuple(forecasts), "controls": controls_of(speeds),
        "flips": (
            Flip(where="64x2 2x", early="lion", final="muon", fraction=0.5, early_nats=0.031, final_nats=0.082),
        ),
        "checks": tuple(Check(name=name, ok=True, detail=detail) for name, detail in CHECKS),
        "num_runs": 512, "num_failed": 0, "total_tokens": 734_003_200,
        "environment": {"machine": "Example CPU @ 2.4 GHz, 16 cores", "threads": 4, "torch": "2.10.0+cpu"},
        "config": {"task": "text", "tokens_per_param": 20.0, "insensitive_nats": 0.0064, "settings": {"width": 64}},
    }  # fmt: skip
    return LadderFinding(**{**values, **changes})


CROWD = {
    "adamw": 1.0, "muon": 1.40, "scion": 1.38, "soap": 1.36, "lion": 0.81, "mars": 1.12, "shampoo": 1.20, "kron": 1.31,
    "sophia": 0.93, "adam-mini": 0.99, "nadamw": 1.02, "normuon": 1.45,
}  # fmt: skip


def make_ladder_crowd() -> LadderFinding:
    return make_ladder(CROWD)


def make_withheld_ladder() -> LadderFinding:
    """A broken rule, said at every size."""
    base = make_ladder()
    detail = "; ".join(f"{size}: on an edge of what was tried: adamw opt.momentum = 0.95" for size in SIZES)
    checks = (*base.checks[:5], replace(base.checks[5], ok=False, detail=detail), *base.checks[6:])
    rows = tuple(replace(row, judgement="withheld") for row in base.rows)
    return replace(base, verdict="Verdict withheld: interior is broken.", checks=checks, rows=rows)


def make_lost_ladder() -> LadderFinding:
    """All runs diverged."""
    base = make_ladder()
    lost = {"mean": None, "low": None, "high": None, "losses": (None,) * len(SEEDS)}
    nothing = {"loss": None, "speedup": None, "low": None, "high": None, "flag": "undefined", "judgement": "unresolved"}
    return replace(
        base,
        rungs=tuple(replace(rung, losses=replace(rung.losses, **lost)) for rung in base.rungs),
        rows=tuple(replace(row, **nothing) for row in base.rows),
        fits={}, flips=(),
        controls=tuple(control_of(c.optimizer, c.settings_of, c.size, None) for c in base.controls),
        forecasts=tuple(
            replace(one, predicted_loss=None, found_loss=None, difference_nats=None, low=None, high=None)
            for one in base.forecasts
        ),
    )  # fmt: skip
