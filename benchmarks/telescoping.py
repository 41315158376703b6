"""Does telescoping find the settings of a wide model? Made-up landscapes whose optimum drifts by a known a / width.

    python benchmarks/telescoping.py --trials 200 --out benchmarks/results/telescoping.json
    python benchmarks/telescoping.py --axes 1 --out benchmarks/results/telescoping.json     # these rows anew
    python benchmarks/telescoping.py --axes 2 --noise 0.01 --seeds 8 --trials 100

The real protocol runs on losses by formula. Beside it, at the cost of its tuning runs: the first grid alone on more
seeds; random search and TPE (Optuna, if it is there) at the final width and at the last width that was meshed. A run
costs as the square of its width. Regret is the exact loss at the final width above the least there.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from muonlab.analyze.optima import Surface, fit_bowl
from muonlab.analyze.significance import Noise
from muonlab.optim.rule import Hyperparameter
from muonlab.records import Record, RunSpec
from muonlab.study.protocol import drive
from muonlab.study.telescoping import first_axis, mesh
from muonlab.study.transfer import Subject, TransferRules, transfer

WIDTHS, FINAL = (32, 64, 128, 256), 1024
AXES = tuple(Hyperparameter(f"opt.{name}", 1.0, (0.5, 1.0, 2.0), low=0.0) for name in ("lr", "weight_decay", "eps"))
ENOUGH_NATS = 3e-3
TARGET_SHARE = 0.95
CASES = ((1, 0.003), (2, 0.0), (2, 0.001), (2, 0.003), (2, 0.01), (3, 0.003))  # axes, noise of a run in nats
HALF = 3.5 * math.log(2)  # of the first mesh


@dataclass(frozen=True)
class Landscape:
    """loss = 1 + sum over axes of h (exp(s z) - 1 - s z) / s^2, z = x - best + rate / width, h = curvature (1 + b / n).

    Drawn once for each trial: `best` within two steps of the start, drift from the first width to infinity normal with
    a standard deviation of one step (a factor of two), a factor of two costs 5 to 30 mnats, s from -0.5 to 0.5, the
    curvature of the first width within 30 % of that at infinity. All ours, set before any result was seen.
    """

    best: np.ndarray
    rate: np.ndarray
    curvature: np.ndarray
    skew: np.ndarray
    narrow: np.ndarray
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator, num_axes: int, noise: float) -> "Landscape":
        step = math.log(2)
        skew = rng.uniform(-0.5, 0.5, num_axes)
        return cls(
            best=rng.uniform(-2 * step, 2 * step, num_axes),
            rate=rng.normal(0, step, num_axes) * WIDTHS[0],
            curvature=2 / step**2 * np.exp(rng.uniform(math.log(0.005), math.log(0.03), num_axes)),
            skew=np.where(np.abs(skew) < 0.01, 0.01, skew),
            narrow=rng.uniform(-0.3, 0.3, num_axes) * WIDTHS[0],
            noise=noise,
        )

    def regret(self, place: Sequence[float] | np.ndarray, width: float) -> float:
        z = np.array(place) - self.best + self.rate / width
        h = self.curvature * (1 + self.narrow / width)
        return float((h * (np.exp(self.skew * z) - 1 - self.skew * z) / self.skew**2).sum())


@dataclass
class World:
    """Runs specs by formula; a seed has luck of its own, the same for all settings, beside that of the run."""

    landscape: Landscape
    trial: int
    cost: float = 0.0  # of all runs at meshed widths, in runs at the first width

    def __call__(self, specs: Sequence[RunSpec]) -> Mapping[str, Record]:
        return {key: self.record(spec, key) for spec in specs for key in (spec.key,)}

    def record(self, spec: RunSpec, key: str) -> Record:
        width = float(spec.get("task.width"))  # type: ignore[arg-type]
        if width < FINAL:
            self.cost += (width / WIDTHS[0]) ** 2
        place = [math.log(float(spec.hyperparameters[h.name])) for h in AXES[: len(self.landscape.best)]]
        luck = np.random.default_rng([self.trial, *key.encode()]).standard_normal()
        common = np.random.default_rng([self.trial, spec.seed]).standard_normal()
        loss = 1 + self.landscape.regret(place, width) + self.landscape.noise * (luck + common)
        return Record(spec=spec, outcome="ok", final_loss=loss, tokens=spec.horizon_tokens)


def run(job: tuple[int, int, float, int]) -> dict[str, Any]:
    """Regrets of all methods in one trial."""
    trial, num_axes, noise, num_seeds = job
    rng = np.random.default_rng([trial, num_axes, round(1e6 * noise)])
    landscape = Landscape.draw(rng, num_axes, noise)
    world, rules = World(landscape, trial), rules_of(num_seeds)
    evidence = drive(transfer([subject(num_axes)], rules), world)
    arm = evidence.arms[0]
    place = [math.log(float(arm.settings[h.name])) for h in AXES[:num_axes]]  # type: ignore[arg-type]
    last = arm.stages[-1].width
    budget = world.cost
    found = {"telescoping": place, "first grid, as many seeds": grid_alone(landscape, rng, budget, num_axes)}
    for name, search in searches().items():
        found[f"{name} at the final width"] = search(landscape, rng, FINAL, budget)
        found[f"{name} at the last meshed width"] = search(landscape, rng, last, budget)
    regrets = {name: landscape.regret(where, FINAL) for name, where in found.items()}
    edges = sum(bool(stage.edges) for stage in arm.stages)
    return {"regrets": regrets, "cost": budget, "edges": edges}


def rules_of(num_seeds: int) -> TransferRules:
    seeds = tuple(range(1000, 1000 + num_seeds))
    return TransferRules(baseline="made up", widths=WIDTHS, final_width=FINAL, seeds=seeds)


def subject(num_axes: int) -> Subject:
    space = AXES[:num_axes]
    specs = {
        width: RunSpec(
            task="made up", optimizer="made up", horizon_tokens=1024, batch_tokens=1024,
            hyperparameters={h.name: h.default for h in space}, task_options={"width": width},
        )
        for width in (*WIDTHS, FINAL)
    }  # fmt: skip
    return Subject(name="made up", optimizer="made up", parametrization="standard", space=space, specs=specs)


def grid_alone(landscape: Landscape, rng: np.random.Generator, budget: float, num_axes: int) -> np.ndarray:
    """The first mesh on all seeds that the budget pays, its optimum by a parabola, carried over unchanged."""
    space = AXES[:num_axes]
    rules = TransferRules(baseline="", widths=WIDTHS)
    axes = {h.name: first_axis(0.0, rules.ratio, rules.points) for h in space}
    points = np.log([[float(point[h.name]) for h in space] for point in mesh(axes, space)])  # type: ignore[arg-type]
    num_seeds = max(1, int(budget / len(points)))
    losses = np.array([landscape.regret(point, WIDTHS[0]) for point in points])
    losses += rng.normal(0, landscape.noise / math.sqrt(num_seeds), len(points))
    surface = Surface(points, losses, np.full(num_axes, math.log(rules.ratio)), num_seeds)
    return fit_bowl([surface], Noise(landscape.noise**2, 100)).optima[0].place


def searches() -> dict[str, Callable[..., np.ndarray]]:
    return {"random": random_search, **({"TPE": tpe} if find_spec("optuna") else {})}


def num_tries(width: int, budget: float) -> int:
    """At least one, which at the final width may be more than the budget."""
    return max(1, int(budget / (width / WIDTHS[0]) ** 2))


def random_search(landscape: Landscape, rng: np.random.Generator, width: int, budget: float) -> np.ndarray:
    """Over the window of the first mesh, all on one seed, whose luck they share."""
    tries = rng.uniform(-HALF, HALF, (num_tries(width, budget), len(landscape.best)))
    losses = [landscape.regret(one, width) + landscape.noise * rng.standard_normal() for one in tries]
    return tries[int(np.argmin(losses))]


def tpe(landscape: Landscape, rng: np.random.Generator, width: int, budget: float) -> np.ndarray:
    """Optuna's default sampler over the same window."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def loss(trial: Any) -> float:
        place = [trial.suggest_float(str(i), -HALF, HALF) for i in range(len(landscape.best))]
        return landscape.regret(place, width) + landscape.noise * rng.standard_normal()

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=int(rng.integers(2**31))))
    study.optimize(loss, n_trials=num_tries(width, budget))
    return np.array([study.best_params[str(i)] for i in range(len(landscape.best))])


def summary(num_axes: int, noise: float, num_seeds: int, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rules = rules_of(num_seeds)
    grid = rules.points**num_axes * len(rules.seeds) * (FINAL / WIDTHS[0]) ** 2
    methods = {}
    for name in trials[0]["regrets"]:
        regrets = sorted(trial["regrets"][name] for trial in trials)
        share = sum(regret <= ENOUGH_NATS for regret in regrets) / len(regrets)
        methods[name] = {
            "share_enough": share,
            "median_regret_nats": statistics.median(regrets),
            "regret_95_nats": regrets[math.ceil(0.95 * len(regrets)) - 1],
        }
    cost = statistics.mean(trial["cost"] for trial in trials)
    return {
        "num_axes": num_axes, "noise_nats": noise, "num_seeds": num_seeds, "trials": len(trials), "methods": methods,
        "mean_cost_in_final_runs": cost / (FINAL / WIDTHS[0]) ** 2, "share_of_grid_at_final": cost / grid,
        "trials_ending_on_an_edge": sum(trial["edges"] > 0 for trial in trials),
        "met": methods["telescoping"]["share_enough"] >= TARGET_SHARE,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--axes", type=int, help="only rows of so many; the others stay as they are in --out")
    parser.add_argument("--noise", type=float, help="only rows of that noise; the others stay as they are in --out")
    parser.add_argument("--seeds", type=int, default=2, help="of every point")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    known = json.loads(arguments.out.read_text())["rows"] if arguments.out and arguments.out.exists() else []
    rows = {(row["num_axes"], row["noise_nats"], row["num_seeds"]): row for row in known}
    with ProcessPoolExecutor(arguments.workers) as pool:
        for num_axes, noise in CASES:
            if arguments.axes not in (None, num_axes) or arguments.noise not in (None, noise):
                continue
            started, num_seeds = time.perf_counter(), arguments.seeds
            jobs = [(trial, num_axes, noise, num_seeds) for trial in range(arguments.trials)]
            row = summary(num_axes, noise, num_seeds, list(pool.map(run, jobs, chunksize=4)))
            rows[num_axes, noise, num_seeds] = {**row, "seconds": round(time.perf_counter() - started, 1)}
            shares = ", ".join(f"{name} {method['share_enough']:.1%}" for name, method in row["methods"].items())
            print(f"{num_axes} axes, noise {noise:g}: {shares}", file=sys.stderr)
    document = {
        "widths": WIDTHS, "final_width": FINAL, "enough_nats": ENOUGH_NATS, "target_share": TARGET_SHARE,
        "rows": [rows[case] for case in sorted(rows)],
    }  # fmt: skip
    text = json.dumps(document, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
