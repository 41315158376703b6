"""A finding as a real comparison gives it, made up from a planted law, and the ways in which studies go wrong."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from muonlab.analyze.findings import (
    Check,
    Comparison,
    Contrast,
    Curve,
    LossesAt,
    OptimizerFinding,
    Paired,
    Slice,
    SlicePoint,
    Speedup,
)

LAW = {"a": 0.62, "b": 1.71, "exponent": 0.42, "scale_tokens": 4_194_304.0}
HORIZON = 4_194_304
SEEDS = (0, 1, 2, 3, 4)
CHECKS = (
    ("complete", "30 final runs, 0 diverged; 0 of all 212 runs failed"),
    ("same_conditions", "same model, data, data order per seed, precision, device"),
    ("fresh_seeds", "5 final seeds, 8 tuning seeds, disjoint"),
    ("same_tuning", "adamw: opt.lr, opt.weight_decay; muon: opt.lr, opt.weight_decay, opt.momentum"),
    ("tuning_effort", "adamw 112 runs (391M tokens), muon 70 runs (293M tokens); cap 60 runs a horizon for each"),
    ("converged", "each tuning ended with a round without a move"),
    ("interior", "each optimum has tried neighbours on both sides"),
    ("own_schedule", "final losses only, each horizon with its own wsd schedule"),
    ("enough_seeds", "5 seeds a horizon; smallest difference found 4 times out of 5: muon 0.013 nats"),
    ("interpolated", "read between horizons: muon at 4,194,304 tokens"),
    ("wall_clock", "median step times of one machine"),
)


def law_loss(tokens: float) -> float:
    return LAW["a"] * (tokens / LAW["scale_tokens"]) ** -LAW["exponent"] + LAW["b"]


def losses_at(name: str, horizon: int, mean: float, settings, seeds: Sequence[int] = SEEDS) -> LossesAt:
    rng = random.Random(f"{name} {horizon}")
    losses = tuple(mean + rng.gauss(0, 0.006) for _ in seeds)
    centre = sum(losses) / len(losses)
    return LossesAt(
        horizon_tokens=horizon,
        seeds=tuple(seeds),
        losses=losses,
        keys=tuple(f"{rng.getrandbits(256):064x}" for _ in seeds),
        mean=centre,
        low=centre - 0.0058,
        high=centre + 0.0058,
        hyperparameters=settings,
    )


def optimizer(name: str, speedup: float, horizons: Sequence[int], settings, **changes) -> OptimizerFinding:
    at = tuple(losses_at(name, h, law_loss(h * speedup), {**settings, "opt.lr": settings["opt.lr"]}) for h in horizons)
    main = next(a for a in at if a.horizon_tokens == HORIZON)
    values = {
        "name": name, "optimizer": name, "fixed": {},
        "loss_mean": main.mean, "loss_std": 0.0062, "num_seeds": 5, "num_diverged": 0,
        "wall_seconds": 61.4 if name == "adamw" else 72.9, "step_seconds": 0.0150 if name == "adamw" else 0.0178,
        "num_params": 1_312_768, "hyperparameters": settings, "polar": "" if name == "adamw" else "newton_schulz",
        "horizons": at, "tuning_runs": 112 if name == "adamw" else 70, "tuning_tokens": 391_380_992, "converged": True,
    }  # fmt: skip
    return OptimizerFinding(**{**values, **changes})


def curves(name: str, speedup: float, horizon: int = HORIZON, seeds: Sequence[int] = SEEDS) -> list[Curve]:
    made = []
    for seed in seeds:
        rng = random.Random(f"{name} {seed} curve")
        tokens = tuple(4096 * (i + 1) for i in range(horizon // 4096))
        loss = tuple(
            min(5.55, law_loss(max(t, 30_000) * speedup) + 0.10 * math.sin(math.pi * t / horizon)) + rng.gauss(0, 0.05)
            for t in tokens
        )
        made.append(Curve(optimizer=name, horizon_tokens=horizon, seed=seed, tokens=tokens, loss=loss))
    return made


def bowl(name: str, coordinate: str, values, chosen, depth: float = 0.02, diverged=()) -> Slice:
    best, low = list(values).index(chosen), 2.243 if name == "muon" else 2.331
    points = tuple(
        SlicePoint(
            value=value,
            mean=None if value in diverged else low + depth * (i - best) ** 2 * (1.2 if i > best else 0.7),
            standard_error=None if value in diverged else 0.0035,
            num_seeds=3,
            num_diverged=2 if value in diverged else 0,
        )
        for i, value in enumerate(values)
    )
    return Slice(optimizer=name, coordinate=coordinate, horizon_tokens=HORIZON, chosen=chosen, points=points)


def speedup_of(tokens: float | None, **changes) -> Speedup:
    values = {
        "tokens": tokens, "low": tokens and tokens * 0.915, "high": tokens and tokens * 1.105,
        "wall": tokens and tokens * 0.842, "wall_low": tokens and tokens * 0.77, "wall_high": tokens and tokens * 0.93,
        "flag": "" if tokens else "undefined", "horizon_tokens": HORIZON,
    }  # fmt: skip
    return Speedup(**{**values, **changes})


def contrast_of(difference: float | None, judgement="better") -> Contrast:
    known = difference is not None
    return Contrast(
        difference_nats=difference,
        low=difference - 0.0091 if known else None,
        high=difference + 0.0091 if known else None,
        p_value=2.1e-7 if known else None,
        resolvable_nats=0.0131 if known else None,
        judgement=judgement,
    )


def paired_of(difference: float | None, no_worse: bool | None = None, **changes) -> Paired:
    known = difference is not None
    values = {
        "difference_nats": difference, "low": difference - 0.0071 if known else None,
        "high": difference + 0.0071 if known else None, "num_pairs": 5 if known else 0, "num_lost": 0 if known else 5,
        "correlation": -0.42 if known else None, "tuning_nats": 0.0023 if known else None,
        "bound_nats": difference + 0.0094 if known else None, "margin_nats": None if no_worse is None else 0.013,
        "p_value": None if no_worse is None else 0.0117, "no_worse": no_worse,
    }  # fmt: skip
    return Paired(**{**values, **changes})


def make_finding(**changes) -> Comparison:
    adamw = {"opt.lr": 0.004, "opt.weight_decay": 0.1}
    muon = {"opt.lr": 0.02, "opt.weight_decay": 0.0, "opt.momentum": 0.95}
    optimizers = {
        "adamw": optimizer("adamw", 1.0, (HORIZON // 2, HORIZON, 2 * HORIZON), adamw),
        "muon": optimizer("muon", 1.404, (HORIZON,), muon),
    }
    rates = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
    values = {
        "verdict": "muon is better than tuned adamw: 1.40x [1.28, 1.55] in tokens, final loss lower by 0.082 nats.",
        "task": "text", "baseline": "adamw", "horizon_tokens": HORIZON, "optimizers": optimizers,
        "speedup": {"muon": speedup_of(1.404)}, "contrasts": {"muon": contrast_of(-0.0823)},
        "paired": {"muon": paired_of(-0.0823)},
        "checks": tuple(Check(name=name, ok=True, detail=detail) for name, detail in CHECKS),
        "slices": (
            bowl("adamw", "opt.lr", rates, 0.004, diverged=(0.016,)),
            bowl("adamw", "opt.weight_decay", (0.0, 0.01, 0.03, 0.1, 0.3), 0.1, 0.002),
            bowl("muon", "opt.lr", (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16), 0.02, 0.03),
            bowl("muon", "opt.weight_decay", (0.0, 0.01, 0.1), 0.0, 0.004),
            bowl("muon", "opt.momentum", (0.8, 0.9, 0.95, 0.98), 0.95, 0.005),
        ),
        "curves": tuple(curves("adamw", 1.0) + curves("muon", 1.404)),
        "law": LAW, "num_runs": 212, "num_failed": 0, "total_tokens": 734_003_200,
        "environment": {
            "machine": "Example CPU @ 2.4 GHz, 16 cores", "threads": 4, "python": "3.11.9", "torch": "2.10.0+cpu",
            "muonlab": "0.1.0", "system": "Linux x86_64",
        },
        "config": {"task": "text", "optimizers": ["adamw", "muon"], "seeds": [0, 1, 2, 3, 4], "set": {"width": 128}},
    }  # fmt: skip
    return Comparison(**{**values, **changes})


CROWD = {
    "muon": 1.40, "scion": 1.38, "soap": 1.36, "lion": 0.81, "mars": 1.12, "shampoo": 1.20, "kron": 1.31,
    "sophia": 0.93, "adam-mini": 0.99, "nadamw": 1.02, "normuon": 1.45,
}  # fmt: skip


def make_crowd(num: int = 12) -> Comparison:
    """A baseline and many challengers, of every kind of result."""
    base = make_finding()
    factors = dict(list(CROWD.items())[: num - 1])
    settings = dict(base.optimizers["muon"].hyperparameters)
    optimizers = {"adamw": base.optimizers["adamw"]}
    contrasts = {}
    for name, factor in factors.items():
        optimizers[name] = optimizer(name, factor, (HORIZON,), settings)
        difference = law_loss(HORIZON * factor) - law_loss(HORIZON)
        resolved = "better" if difference < 0 else "worse"
        contrasts[name] = contrast_of(difference, resolved if abs(difference) > 0.02 else "unresolved")
    return replace(
        base,
        verdict=" ".join(f"{name} against adamw: {contrast.judgement}." for name, contrast in contrasts.items()),
        optimizers=optimizers,
        speedup={name: speedup_of(factor) for name, factor in factors.items()},
        contrasts=contrasts,
        paired={name: paired_of(contrast.difference_nats) for name, contrast in contrasts.items()},
        slices=tuple(replace(s, optimizer=name) for name in factors for s in base.slices if s.optimizer == "muon"),
        curves=tuple(c for name, factor in {"adamw": 1.0, **factors}.items() for c in curves(name, factor)),
    )


def make_variants() -> Comparison:
    """Muon with other settings against Muon, with a margin that holds for one of them."""
    settings = {"opt.lr": 0.02, "opt.weight_decay": 0.0}
    triples = ((4.0848, -6.8946, 2.927), (3.9505, -6.3029, 2.6377))
    variants = {"muon-4": {"opt.ns_steps": 4}, "two": {"opt.ns_coefficients": triples, "opt.ns_steps": 2}}
    muon = optimizer("muon", 1.0, (HORIZON // 2, HORIZON, 2 * HORIZON), settings)
    optimizers = {"muon": muon}
    for name, fixed in variants.items():
        optimizers[name] = optimizer(name, 1.01, (HORIZON,), settings, optimizer="muon", fixed=fixed)
    return make_finding(
        verdict="muon-4 is no worse than tuned muon by more than 0.013 nats.", baseline="muon", optimizers=optimizers,
        speedup={name: speedup_of(1.01) for name in variants},
        contrasts={name: contrast_of(0.0012, "unresolved") for name in variants},
        paired={"muon-4": paired_of(0.0012, True), "two": paired_of(0.0112, False, num_pairs=4, num_lost=1)},
        slices=(), curves=(),
    )  # fmt: skip


def lost(finding: Comparison, names: Sequence[str]) -> Comparison:
    """The same study, had every final run of those optimizers diverged."""
    optimizers = dict(finding.optimizers)
    for name in names:
        old = optimizers[name]
        horizons = tuple(
            replace(at, losses=(None,) * len(at.losses), mean=None, low=None, high=None) for at in old.horizons
        )
        optimizers[name] = replace(
            old, horizons=horizons, loss_mean=None, loss_std=None, num_seeds=0, wall_seconds=None, step_seconds=None,
            num_diverged=sum(len(at.losses) for at in horizons),
        )  # fmt: skip
    return replace(
        finding,
        optimizers=optimizers,
        speedup={name: speedup_of(None) for name in finding.speedup},
        contrasts={name: contrast_of(None, "unresolved") for name in finding.contrasts},
        paired={name: paired_of(None) for name in finding.paired},
        law=None if finding.baseline in names else finding.law,
        verdict="Verdict withheld: complete: 20 final runs, 5 diverged; 0 of all 212 runs failed",
        checks=(replace(finding.checks[0], ok=False, detail="20 final runs, 5 diverged"), *finding.checks[1:]),
    )
