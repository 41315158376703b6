"""The finding of a batch study as a real one gives it, made up from planted curves of tokens over batch."""

import math
import random
from collections.abc import Mapping
from dataclasses import replace

from muonlab.analyze.batch import BatchFinding, BatchSettings, CriticalBatch, NoiseAt, TokenRatio, Trend
from muonlab.analyze.critical_batch import UNDEFINED, Estimate
from muonlab.analyze.findings import Check
from muonlab.analyze.frontier import DeviceModel, Dominance, FrontierPoint, StepTime
from muonlab.analyze.reaching import TimeToTarget
from muonlab.analyze.verdicts import batch_verdict

BATCHES = tuple(1024 * 2**i for i in range(7))
TARGETS = (3.2, 2.9, 2.6)
LEAST = dict(zip(TARGETS, (1.0e6, 2.4e6, 6.0e6), strict=True))  # tokens of the baseline at the best batch
OPTIMIZERS = {"adamw": (1.0, 6000.0), "muon": (1.5, 14000.0), "lion": (0.9, 4500.0)}  # speed, critical batch
NUM_SEEDS = 3
MODEL = DeviceModel(devices=(1, 2, 4, 8), bandwidth=2.5e10, latency_seconds=2e-5)
CHECKS = (
    ("complete", "63 final runs, 0 diverged; 0 of all 700 runs failed"),
    ("same_conditions", "same model, data, data order per seed, precision, device"),
    ("fresh_seeds", "3 final seeds, 6 tuning seeds, disjoint"),
    ("converged", "each tuning ended with a round without a move"),
    ("interior", "each optimum has tried neighbours on both sides"),
    ("constant_lr", "constant lr, losses of the weights averaged over the last 5% of the tokens so far"),
    ("reached", "not reached: 2.6 by adamw at 65,536, 2.6 by lion at 65,536"),
)


def tokens_of(name: str, batch: int, target: float, optimizers: Mapping = OPTIMIZERS) -> float:
    speed, critical = optimizers[name]
    return LEAST[target] / speed * (1 + 0.2 * batch / critical)


def time_of(name: str, batch: int, target: float, optimizers: Mapping = OPTIMIZERS) -> TimeToTarget:
    rng = random.Random(f"{name} {batch} {target}")
    seeds = [tokens_of(name, batch, target, optimizers) * math.exp(rng.gauss(0, 0.03)) for _ in range(NUM_SEEDS)]
    tokens, horizon = math.exp(sum(map(math.log, seeds)) / NUM_SEEDS), 2**24
    keys = random.Random(f"{name} {batch}")
    return TimeToTarget(
        optimizer=name, batch_tokens=batch, target=target, tokens=tokens, low=tokens / 1.07, high=tokens * 1.07,
        by_seed=tuple(seeds), keys=tuple(f"{keys.getrandbits(256):064x}" for _ in range(NUM_SEEDS)),
        horizon_tokens=horizon, steps=tokens / batch, seconds=tokens / batch * step_of(name, batch), flag="",
    )  # fmt: skip


def unreached(one: TimeToTarget, num_missed: int) -> TimeToTarget:
    by_seed = (*one.by_seed[num_missed:], *[None] * num_missed)
    return replace(one, tokens=None, low=None, high=None, steps=None, seconds=None, by_seed=by_seed, flag="unreached")


def fit_of(name: str) -> StepTime:
    return StepTime(
        optimizer=name, fixed_seconds=0.004 if name == "adamw" else 0.006, seconds_per_token=2.5e-6, worst=0.031
    )


def step_of(name: str, batch: float) -> float:
    return fit_of(name).fixed_seconds + fit_of(name).seconds_per_token * batch


def ratio_of(ours: TimeToTarget, theirs: TimeToTarget) -> TokenRatio:
    place = {"optimizer": ours.optimizer, "batch_tokens": ours.batch_tokens, "target": ours.target}
    if ours.flag or theirs.flag:
        why = ", ".join(f"{one.optimizer} {one.flag}" for one in (theirs, ours) if one.flag)
        return TokenRatio(**place, ratio=None, low=None, high=None, judgement=None, detail=why)
    ratio = theirs.tokens / ours.tokens
    judgement = "better" if ratio / 1.1 > 1 else "worse" if ratio * 1.1 < 1 else "unresolved"
    return TokenRatio(**place, ratio=ratio, low=ratio / 1.1, high=ratio * 1.1, judgement=judgement, detail="")


def trend_of(name: str, target: float) -> Trend:
    if name == "muon":
        return Trend(optimizer=name, target=target, slope=0.071, low=0.052, high=0.09, verdict="grows")
    return Trend(optimizer=name, target=target, slope=-0.011, low=-0.034, high=0.012, verdict="unresolved")


def critical_of(name: str, target: float, optimizers: Mapping = OPTIMIZERS) -> CriticalBatch:
    speed, batch = optimizers[name]
    reached = BATCHES[:-1] if target == TARGETS[-1] and name != "muon" else BATCHES
    return CriticalBatch(
        optimizer=name, target=target, overhead=Estimate(value=batch, low=batch / 1.4, high=batch * 1.5),
        doubling=Estimate(value=5 * batch, low=4 * batch, high=8 * batch),
        sfo=Estimate(value=1024.0, low=1024.0, high=2311.5, flag="below"),
        noise_scale=Estimate(value=0.4 * batch, low=0.3 * batch, high=0.55 * batch),
        nuclear_noise_scale=Estimate(value=1.6 * batch, low=None, high=None), token_optimal=2048.0,
        least_tokens=LEAST[target] / speed, fitted=batch, power=1.0, batches=reached,
    )  # fmt: skip


def noise_at(name: str, batch: int, target: float) -> NoiseAt:
    critical = OPTIMIZERS.get(name, (1.0, 5000.0))[1] * (1 + TARGETS.index(target) / 2)
    own = [Estimate(value=c * critical, low=c * critical / 1.3, high=c * critical * 1.3) for c in (0.4, 1.6)]
    return NoiseAt(optimizer=name, batch_tokens=batch, target=target, simple=own[0], nuclear=own[1])


def settings_of(name: str, batch: int) -> BatchSettings:
    lr = 0.004 * math.sqrt(batch / 8192) * (8 if name == "muon" else 1)
    momentum = {"opt.momentum" if name == "muon" else "opt.beta1": 0.95 if name == "muon" else 0.9}
    predicted = {"opt.lr": float(f"{lr:.6g}"), "opt.weight_decay": 0.1, **momentum}
    chosen = {**predicted, "opt.lr": predicted["opt.lr"] * (0.5 if batch > 16384 else 1.0)}
    return BatchSettings(
        optimizer=name, batch_tokens=batch, horizon_tokens=2**24, predicted=predicted, chosen=chosen, num_runs=18,
        converged=batch != 1024, edges=("opt.lr",) if batch == 1024 else (), step_seconds=step_of(name, batch),
    )  # fmt: skip


def frontier_of(times) -> tuple[FrontierPoint, ...]:
    points = []
    for one in times:
        for d in MODEL.devices:
            if one.flag or one.batch_tokens / d < BATCHES[0]:
                continue
            exchange = 0.0 if d == 1 else 2 * (d - 1) / d * 4e6 / MODEL.bandwidth + MODEL.latency_seconds
            seconds = one.steps * (step_of(one.optimizer, one.batch_tokens / d) + exchange)
            points.append(
                FrontierPoint(
                    optimizer=one.optimizer, target=one.target, batch_tokens=one.batch_tokens, devices=d,
                    seconds=seconds, tokens=one.tokens, modelled=d > 1, on_frontier=False,
                )
            )  # fmt: skip
    return tuple(replace(p, on_frontier=not any(beats(other, p) for other in points)) for p in points)


def beats(a: FrontierPoint, b: FrontierPoint) -> bool:
    same = (a.optimizer, a.target) == (b.optimizer, b.target) and a is not b
    return same and a.devices <= b.devices and a.seconds <= b.seconds


def dominance_of(name: str, target: float, points) -> Dominance:
    def fastest(of: str, d: int) -> float:
        return min(p.seconds for p in points if (p.optimizer, p.target, p.devices) == (of, target, d))

    return Dominance(
        optimizer=name, target=target, devices=MODEL.devices, seconds=tuple(fastest(name, d) for d in MODEL.devices),
        baseline_seconds=tuple(fastest("adamw", d) for d in MODEL.devices),
        verdict="dominates" if name == "muon" else "unresolved",
    )  # fmt: skip


def make_batch(optimizers: Mapping = OPTIMIZERS, **changes) -> BatchFinding:
    """A baseline and challengers with every kind of result."""
    pairs = [(name, target) for name in optimizers for target in TARGETS]
    places = [(name, batch, target) for name, target in pairs for batch in BATCHES]
    times = {place: time_of(*place, optimizers) for place in places}
    for name, missed in (("adamw", 1), ("lion", 3)):
        if name in optimizers:
            times[name, BATCHES[-1], 2.6] = unreached(times[name, BATCHES[-1], 2.6], missed)
    if "muon" in optimizers:
        times["muon", 1024, 3.2] = replace(times["muon", 1024, 3.2], flag="early", low=None, high=None)
    challengers = [name for name in optimizers if name != "adamw"]
    ratios = [ratio_of(times[n, b, t], times["adamw", b, t]) for n in challengers for t in TARGETS for b in BATCHES]
    critical = {pair: critical_of(*pair, optimizers) for pair in pairs}
    above = Estimate(value=65536.0, low=41230.4, high=None, flag="above")
    if "muon" in optimizers:
        critical["muon", 3.2] = replace(critical["muon", 3.2], overhead=above)
        critical["adamw", 2.6] = replace(critical["adamw", 2.6], noise_scale=UNDEFINED)
        critical["lion", 2.6] = replace(
            critical["lion", 2.6], overhead=Estimate(value=1024.0, low=None, high=1500.0, flag="below")
        )
    points = frontier_of(times.values())
    values = {
        "verdict": "", "task": "text", "baseline": "adamw", "optimizers": tuple(optimizers), "batches": BATCHES,
        "reference": 8192, "targets": TARGETS, "targets_given": False,
        "times": tuple(times.values()), "token_ratio": tuple(ratios),
        "trends": tuple(trend_of(n, t) for n in challengers for t in TARGETS), "critical": tuple(critical.values()),
        "noise": tuple(noise_at(n, b, t) for n, b, t in places),
        "settings": tuple(settings_of(n, b) for n in optimizers for b in BATCHES),
        "step_times": tuple(fit_of(name) for name in optimizers), "frontier": points,
        "dominance": tuple(dominance_of(n, t, points) for n in challengers for t in TARGETS), "device_model": MODEL,
        "checks": tuple(Check(name=name, ok=name != "reached", detail=detail) for name, detail in CHECKS),
        "num_runs": 763, "num_failed": 0, "total_tokens": 9_734_003_200,
        "environment": {"machine": "Example GPU 80 GB", "threads": 4, "torch": "2.10.0"},
        "config": {"task": "text", "batches": list(BATCHES), "reference": None, "settings": {"task.width": 64}},
    }  # fmt: skip
    finding = BatchFinding(**{**values, **changes})
    return finding if "verdict" in changes else replace(finding, verdict=batch_verdict(finding, finding.checks))


def make_withheld_batch() -> BatchFinding:
    """A broken rule, said of every place."""
    base = make_batch()
    detail = "; ".join(f"on an edge of what was tried: {n} opt.lr = 0.1" for n in OPTIMIZERS)
    checks = tuple(replace(c, ok=False, detail=detail) if c.name == "interior" else c for c in base.checks)
    ratios = tuple(replace(one, judgement=one.judgement and "withheld") for one in base.token_ratio)
    return replace(base, checks=checks, token_ratio=ratios, verdict="Verdict withheld: interior is broken.")


def make_lost_batch() -> BatchFinding:
    """No run reached any target."""
    base = make_batch()
    nothing = {
        "overhead": UNDEFINED,
        "doubling": UNDEFINED,
        "sfo": UNDEFINED,
        "noise_scale": UNDEFINED,
        "nuclear_noise_scale": UNDEFINED,
    }
    finding = replace(
        base,
        times=tuple(unreached(one, NUM_SEEDS) for one in base.times),
        token_ratio=tuple(
            replace(one, ratio=None, low=None, high=None, judgement=None, detail="adamw unreached, it unreached")
            for one in base.token_ratio
        ),
        trends=tuple(replace(one, slope=None, low=None, high=None, verdict="undefined") for one in base.trends),
        critical=tuple(
            replace(one, **nothing, token_optimal=None, least_tokens=None, fitted=None, power=None, batches=())
            for one in base.critical
        ),
        noise=tuple(replace(one, simple=UNDEFINED, nuclear=UNDEFINED) for one in base.noise),
        frontier=(),
        dominance=tuple(
            replace(one, devices=(), seconds=(), baseline_seconds=(), verdict="undefined") for one in base.dominance
        ),
    )
    return replace(finding, verdict=batch_verdict(finding, finding.checks))


CROWD = {
    "adamw": (1.0, 6000.0), "muon": (1.5, 14000.0), "scion": (1.45, 13000.0), "soap": (1.4, 12000.0),
    "lion": (0.9, 4500.0), "mars": (1.1, 7000.0), "kron": (1.3, 11000.0), "sophia": (0.95, 5000.0),
    "nadamw": (1.02, 6100.0),
}  # fmt: skip


def make_batch_crowd() -> BatchFinding:
    return make_batch(CROWD)


def make_alone() -> BatchFinding:
    """A baseline and nothing to hold against it."""
    return make_batch({"adamw": OPTIMIZERS["adamw"]})
