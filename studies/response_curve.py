"""Which response curve sigma / |X|_F -> singular value does training want? The study of response_curve.toml.

    python studies/response_curve.py --dry-run
    python studies/response_curve.py --workers 2 > docs/response_curve_tables.md

runs the comparison for output projections and head that start at zero and for those that do not, keeps everything in
the store (the same command goes on after an interruption and runs nothing twice), writes a report for each, and prints
the tables in Markdown. `--optimizers muon,exact` and `--seeds 2` make it small.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from muonlab.analyze.findings import Comparison, OptimizerFinding, Paired
from muonlab.analyze.significance import paired
from muonlab.cli.laboratory import Laboratory
from muonlab.cli.show import show_price
from muonlab.optim import catalog
from muonlab.records.store import Store
from muonlab.report import page
from muonlab.report.text import claim
from muonlab.study.compare import compare
from muonlab.study.config import ComparisonConfig, flattened, load_config, validated
from muonlab.study.fairness import conclude
from muonlab.study.plan import Plan, plan_comparison

NAMES = {"tokens": "horizon_tokens", "seeds": "num_seeds"}  # in a study file: in a config
LRS = (0.016, 0.0226, 0.032, 0.0453, 0.064)  # half the steps of the rule's grid: what lies between costs < 0.002 nats
SIGMAS = (0.001, 0.01, 0.1, 0.5, 0.9, 1.0)
QUESTIONS = {  # what differs between the arms of a pair: (one arm, the other) of each pair
    "f(1) 1.1 rather than 0.7, all else equal": (("jordan-5-high", "muon"),),
    "one step fewer at the same f(1)": (("jordan-4-low", "muon"),),
    "damped rather than not": (("rational-2-damped", "rational-2"), ("exact-damped", "exact")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="response_curve.db")
    parser.add_argument("--workers", type=int, default=0, help="runs at a time; 0 = one per core")
    parser.add_argument("--seeds", type=int, help="final runs of each method")
    parser.add_argument("--optimizers", help="some of the study's names, the baseline first")
    parser.add_argument("--dry-run", action="store_true", help="say how many runs and how long, and stop")
    asked = parser.parse_args()
    laboratory = Laboratory(asked.store, asked.workers)
    for zero_init in (True, False):
        config = configured(zero_init, asked.seeds, asked.optimizers)
        plan = refined(plan_comparison(config))
        if asked.dry_run:
            print(f"task.zero_init = {str(zero_init).lower()}")
            show_price(plan.price(), laboratory.num_workers, json=False)
            continue
        finding, created = studied(config, plan, laboratory)
        name = f"muonlab-response-curve-{'zero' if zero_init else 'plain'}.html"
        page.write(name, page.render(finding, created=created, command="python studies/response_curve.py"))
        print("\n".join([*heading(finding, zero_init), *table(finding), *answers(finding)]), flush=True)


def configured(zero_init: bool, num_seeds: int | None, optimizers: str | None) -> ComparisonConfig:
    values = load_config(Path(__file__).with_suffix(".toml"))
    values = {NAMES.get(name, name): value for name, value in values.items()}
    values["settings"] = {**flattened(values["settings"]), "task.zero_init": zero_init}
    if num_seeds:
        values["num_seeds"] = num_seeds
    if optimizers:
        values["optimizers"] = tuple(optimizers.split(","))
    return validated(values)


def refined(plan: Plan) -> Plan:
    """The plan with the finer grid of learning rates: the steps of the rule's own hide differences of 0.01 nats."""
    spaces = {
        name: tuple(replace(h, grid=LRS, default=LRS[2]) if h.name == "opt.lr" else h for h in space)
        for name, space in plan.spaces.items()
    }
    return replace(plan, spaces=spaces)


def studied(config: ComparisonConfig, plan: Plan, laboratory: Laboratory) -> tuple[Comparison, str]:
    asked = {**config.model_dump(mode="json"), "conventions": plan.conventions, "grid": {"opt.lr": LRS}}
    protocol = compare(plan.bases, plan.spaces, plan.rules, asked, plan.fixed)
    evidence, _ = laboratory.run(protocol, plan.price().likely_tokens)
    with Store(laboratory.store_url) as store:
        store.save_study(config.key, "comparison", config.task, asked, evidence.to_dict())
        return conclude(evidence, store.get(evidence.record_keys())), store.study(config.key).created


def heading(finding: Comparison, zero_init: bool) -> list[str]:
    start = "start at zero" if zero_init else "do not start at zero"
    broken = [f"{check.name} ({check.detail})" for check in finding.checks if not check.ok]
    return [
        f"## Output projections and head {start}",
        "",
        f"{finding.num_runs} runs, {finding.total_tokens / 1e6:.1f}M tokens.",
        "",
        f"Broken fairness checks: {'; '.join(broken) or 'none'}.",
        "",
    ]


def table(finding: Comparison) -> list[str]:
    """One row per method: its curve, its learning rate, and what it costs or gains against the baseline."""
    values = [f"f({sigma:g})" for sigma in SIGMAS]
    margin = next(iter(finding.paired.values())).margin_nats
    columns = ["method", *values, "lr", "loss", "difference by seed", "at most", f"no worse by {margin:g}", "one step"]
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for name, optimizer in finding.optimizers.items():
        curve = [f"{value:.2f}" for value in response(optimizer.fixed)]
        loss = [f"{optimizer.hyperparameters['opt.lr']:g}", number(optimizer.loss_mean, ".4f")]
        test = finding.paired.get(name)
        against = ["", "", "baseline"] if test is None else [interval(test), number(test.bound_nats), claim(test)]
        lines.append(f"| {' | '.join([name, *curve, *loss, *against, milliseconds(optimizer)])} |")
    return [*lines, ""]


def response(fixed: Mapping[str, object]) -> list[float]:
    """f at SIGMAS, as a step of the optimizer does it: the first singular value of the update of a 2 x 2 matrix."""
    found = []
    for sigma in SIGMAS:
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        weight.grad = torch.diag(torch.tensor([sigma, (1 - sigma**2) ** 0.5]))
        settings = {"opt.lr": 1.0, "opt.momentum": 0.0, "opt.weight_decay": 0.0, **fixed}
        catalog.build("muon", [("weight", weight)], {"weight": "hidden"}, settings).step()
        found.append(-float(weight.detach()[0, 0]))
    return found


def answers(finding: Comparison) -> list[str]:
    """What a property of the curve costs, by seed and over both pairs that differ in it."""
    lines = []
    for question, pairs in QUESTIONS.items():
        if not {name for pair in pairs for name in pair} <= finding.optimizers.keys():
            continue
        ours, theirs = (_mean_by_seed(finding, [pair[side] for pair in pairs]) for side in (0, 1))
        lines.append(f"* {question}: {interval(paired(ours, theirs))} nats")
    return [*lines, ""]


def _mean_by_seed(finding: Comparison, names: list[str]) -> dict[int, float | None]:
    """Mean final loss of some methods on each seed; None where one of them lost its run."""
    cells = [
        next(at for at in finding.optimizers[name].horizons if at.horizon_tokens == finding.horizon_tokens)
        for name in names
    ]
    by_seed = zip(cells[0].seeds, *(at.losses for at in cells), strict=True)
    return {seed: None if None in losses else sum(losses) / len(losses) for seed, *losses in by_seed}


def interval(test: Paired) -> str:
    if test.low is None or test.high is None:
        return number(test.difference_nats)
    return f"{number(test.difference_nats)} [{number(test.low)}, {number(test.high)}]"


def number(value: float | None, form: str = "+.4f") -> str:
    return "-" if value is None else f"{value:{form}}"


def milliseconds(optimizer: OptimizerFinding) -> str:
    return "-" if optimizer.step_seconds is None else f"{1e3 * optimizer.step_seconds:.0f} ms"


if __name__ == "__main__":
    main()
