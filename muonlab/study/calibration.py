"""Does the pipeline tell the truth? Simulated studies on a loss landscape whose speedup is known.

The real protocol, analysis, checks and verdict run on made-up losses with measured noise: how often is a difference
found where there is none, and how often does the 95 % interval hold the planted speedup?
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from muonlab.analyze.findings import Comparison
from muonlab.optim.rule import Hyperparameter
from muonlab.records import Record, RunSpec
from muonlab.study.compare import ComparisonRules, compare
from muonlab.study.fairness import conclude
from muonlab.study.protocol import drive

__all__ = ["Calibration", "Landscape", "Response", "anywhere", "calibrate", "claim_rate"]

LR = Hyperparameter("opt.lr", 0.008, (0.001, 0.002, 0.004, 0.008, 0.016, 0.032), low=0.0, low_closed=False)
WEIGHT_DECAY = Hyperparameter("opt.weight_decay", 0.1, (0.0, 0.1, 0.2), low=0.0)
HORIZON_TOKENS, BATCH_TOKENS = 98_304, 1024
PARAMS = HORIZON_TOKENS // 20  # of the smallest size of a ladder; elsewhere there is no other


@dataclass(frozen=True, kw_only=True)
class Response:
    """Expected loss of one optimizer as a function of its settings, its size and its horizon, and the noise around it.

    Math     floor + size_drop * n^-0.3 + drop * (speed * n^-speed_drift * tokens / 98304)^-exponent
             + lr_curvature * log2(lr / best)^2 + decay_curvature * ((weight_decay - best) / 0.1)^2 + noise
             with n = params / 4915 and the best lr falling as tokens^-lr_drift n^-lr_size_drift
    """

    speed: float = 1.0  # tokens speedup over a response with speed 1 and the same law
    noise: float = 0.1  # nats, standard deviation between seeds at 98304 tokens
    noise_decay: float = 0.5  # the noise falls as tokens^-noise_decay
    seed_share: float = 0.25  # of the noise variance: what a seed brings to all settings and horizons alike
    floor: float = 1.6
    drop: float = 1.0
    exponent: float = 0.45
    best_lr: float = 0.008
    lr_curvature: float = 0.08
    lr_drift: float = 0.2
    best_weight_decay: float = 0.1
    decay_curvature: float = 0.002
    diverges_above: float = math.inf  # lr
    size_drop: float = 0.5
    speed_drift: float = 0.0
    lr_size_drift: float = 0.3

    def expected(self, spec: RunSpec) -> float:
        lr, weight_decay = float(spec.get("opt.lr")), float(spec.get("opt.weight_decay"))
        ratio = spec.horizon_tokens / HORIZON_TOKENS
        size = float(spec.task_options.get("params", PARAMS)) / PARAMS
        best = self.best_lr * ratio**-self.lr_drift * size**-self.lr_size_drift
        return (
            self.floor
            + self.size_drop * (size**-0.3 - 1.0)
            + self.drop * (self.speed * size**-self.speed_drift * ratio) ** -self.exponent
            + self.lr_curvature * math.log2(lr / best) ** 2
            + self.decay_curvature * ((weight_decay - self.best_weight_decay) / 0.1) ** 2
        )


@dataclass(frozen=True)
class Landscape:
    """Runs specs by formula. Everything is a function of the spec and `trial`, as in a real run."""

    responses: Mapping[str, Response]
    trial: int = 0

    def record(self, spec: RunSpec) -> Record:
        response = self.responses[spec.optimizer]
        if float(spec.get("opt.lr")) > response.diverges_above:
            return Record(spec=spec, outcome="diverged", diverged_step=1)
        loss = response.expected(spec)
        seed = math.sqrt(response.seed_share) * self._normal(f"{spec.optimizer} seed {spec.seed}")
        noise = response.noise * (spec.horizon_tokens / HORIZON_TOKENS) ** -response.noise_decay
        loss += noise * (seed + math.sqrt(1.0 - response.seed_share) * self._normal(spec.key))
        return Record(
            spec=spec, outcome="ok", final_loss=loss, tokens=spec.horizon_tokens, step_seconds=0.01,
            environment={"machine": "simulated"}, params={"hidden": 1},
        )  # fmt: skip

    def run(self, specs: Sequence[RunSpec]) -> dict[str, Record]:
        return {spec.key: self.record(spec) for spec in specs}

    def _normal(self, name: str) -> float:
        digest = hashlib.sha256(f"{self.trial} {name}".encode()).digest()
        return float(np.random.default_rng(list(digest[:16])).standard_normal())


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Outcome of many simulated studies with one planted speedup. Rates are fractions of the studies."""

    planted: float
    num_studies: int
    baseline: Response
    challenger: Response
    false_verdicts: float  # a verdict on the wrong side, or any verdict where nothing was planted
    verdicts: float  # any verdict
    coverage: float  # the interval of the tokens speedup holds the planted one
    censored: float
    median_speedup: float
    median_width: float  # of the interval, high / low
    mean_runs: float
    standard_errors: Mapping[str, float] = field(default_factory=dict)  # of the rates, binomial

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibrate(planted: float, num_studies: int, *, noises: tuple[float, float], seed: int = 0) -> Calibration:
    """Simulate `num_studies` comparisons whose challenger is `planted` times as fast as the baseline.

    Each study has its own landscape: where the optima lie relative to the grid is random and different for the two
    optimizers, as it is in life. `noises` are those of baseline and challenger.
    """
    outcomes = [_outcome(planted, noises, np.random.default_rng([seed, trial]), trial) for trial in range(num_studies)]
    held = [o for o in outcomes if o["covered"] is not None]
    rates = {
        "false_verdicts": float(np.mean([o["judgement"] in o["wrong"] for o in outcomes])),
        "verdicts": float(np.mean([o["judgement"] in ("better", "worse") for o in outcomes])),
        "coverage": float(np.mean([o["covered"] for o in held])) if held else math.nan,
        "censored": 1 - len(held) / len(outcomes),
    }
    return Calibration(
        planted=planted,
        num_studies=num_studies,
        baseline=Response(noise=noises[0]),
        challenger=Response(noise=noises[1], speed=planted),
        median_speedup=float(np.median([o["speedup"] for o in held] or [math.nan])),
        median_width=float(np.median([o["width"] for o in held] or [math.nan])),
        mean_runs=float(np.mean([o["runs"] for o in outcomes])),
        standard_errors={
            name: math.sqrt(max(r * (1 - r), 0.0) / (len(held) if name == "coverage" else num_studies))
            for name, r in rates.items()
            if math.isfinite(r)
        },
        **rates,
    )


def claim_rate(
    margin_nats: float, excess_nats: float, num_studies: int, *, noise: float, num_seeds: int = 5, seed: int = 0
) -> float:
    """How often a challenger is said to be no worse by more than a margin, worse by `excess_nats` as it is.

    Both at their own best settings, which lie at random places of the grid: a study knows them as well as its tuning.
    """
    rules = ComparisonRules(baseline="a", final_seeds=tuple(range(num_seeds)), margin_nats=margin_nats)
    said = 0
    for trial in range(num_studies):
        rng = np.random.default_rng([seed, trial])
        responses = {"a": anywhere(rng, noise=noise), "b": anywhere(rng, noise=noise)}
        responses["b"] = replace(responses["b"], floor=responses["a"].floor + excess_nats)
        finding, _ = _study(responses, rules, trial)
        said += finding.paired["b"].no_worse is True
    return said / num_studies


def anywhere(rng: np.random.Generator, **values: float) -> Response:
    """A response whose best settings lie anywhere between the values of the grids."""
    return Response(best_lr=0.004 * 4 ** rng.random(), best_weight_decay=0.2 * rng.random(), **values)


def _study(responses: Mapping[str, Response], rules: ComparisonRules, trial: int) -> tuple[Comparison, int]:
    """The finding of one simulated comparison, and its number of runs."""
    landscape = Landscape(responses, trial)
    bases = {
        name: RunSpec(
            task="landscape", optimizer=name, horizon_tokens=HORIZON_TOKENS, batch_tokens=BATCH_TOKENS,
            hyperparameters={"opt.lr": LR.default, "opt.weight_decay": WEIGHT_DECAY.default},
        )
        for name in responses
    }  # fmt: skip
    spaces = dict.fromkeys(bases, (LR, WEIGHT_DECAY))
    records: dict[str, Record] = {}

    def run(specs: Sequence[RunSpec]) -> dict[str, Record]:
        records.update(landscape.run(specs))
        return {spec.key: records[spec.key] for spec in specs}

    evidence = drive(compare(bases, spaces, rules), run)
    return conclude(evidence, records), len(records)


def _outcome(planted: float, noises: tuple[float, float], rng: np.random.Generator, trial: int) -> dict[str, Any]:
    responses = {"a": anywhere(rng, noise=noises[0]), "b": anywhere(rng, noise=noises[1], speed=planted)}
    finding, num_runs = _study(responses, ComparisonRules(baseline="a"), trial)
    speedup, judgement = finding.speedup["b"], finding.contrasts["b"].judgement
    wrong = {1.0: ("better", "worse")}.get(planted, ("worse",) if planted > 1 else ("better",))
    bounds = (speedup.low or 0.0, speedup.high or math.inf)
    inside = speedup.tokens is not None and speedup.flag != "censored"
    return {
        "judgement": judgement,
        "wrong": wrong,
        "covered": bounds[0] <= planted <= bounds[1] if inside else None,
        "speedup": speedup.tokens or math.nan,
        "width": bounds[1] / bounds[0] if bounds[0] else math.inf,
        "runs": num_runs,
    }
