"""The ladder of studies/ladder.toml: keep its results in one file, and write docs/ladder_results.md from that.

muonlab ladder text --config studies/ladder.toml --store ladder.db
python studies/ladder.py --store ladder.db      # also keeps the results in studies/ladder_results.json.gz
python studies/ladder.py                        # writes the page again, from the file alone
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from results import Results, latest, read, write
from writing import checks, interval, table

from muonlab.analyze.ladder import LadderFinding
from muonlab.records.evidence import LadderEvidence
from muonlab.records.store import Store
from muonlab.report.text import show
from muonlab.study.fairness import conclude_ladder

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "ladder_results.json.gz", HERE.parent / "docs" / "ladder_results.md"


def keep(url: str) -> None:
    """The latest ladder of a store, with its records; of tuning runs without their curves."""
    with Store(url, read_only=True) as store:
        found = Results.of_store(store, latest(store, "ladder"), LadderEvidence)
    final = {key for rung in found.evidence.rungs for key in rung.cell.keys}
    lean = found.leaner(lambda one: one if one.key in final else replace(one, train_steps=(), train_loss=()))
    write(RESULTS, lean.to_dict())


def kept() -> tuple[LadderFinding, Results[LadderEvidence]]:
    found = Results.from_dict(read(RESULTS), LadderEvidence)
    return conclude_ladder(found.evidence, found.records), found


def settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {show(value, 'value')}" for name, value in values.items())


def page(finding: LadderFinding, results: Results[LadderEvidence]) -> str:
    parts = {
        "Speedup in tokens": rungs(finding),
        "Settings": chosen(finding),
        "What has to be tuned anew with scale": sensitivity(finding),
        "Predicted at the largest size, and found there": forecasts(finding),
        "What tuning is worth": controls(finding),
        "Rankings that flip": flips(finding),
        "Checks": checks(finding.checks),
    }
    lines = heading(finding, results)
    for title, body in parts.items():
        lines += [f"## {title}", "", *body]
    return "\n".join(lines)


def heading(finding: LadderFinding, results: Results[LadderEvidence]) -> list[str]:
    evidence, first = results.evidence, next(iter(results.records.values())).spec
    options = settings({k: v for k, v in first.task_options.items() if k in ("seq_len", "eval_tokens")})
    return [
        "# A ladder on embedded text",
        "",
        "Measured by muonlab. Written by `make ladder-page` from `studies/ladder_results.json.gz`, which holds every",
        "run; `make ladder` makes the runs again. What the words mean is in [the ladder](ladder.md).",
        "",
        f"**{finding.verdict}**",
        "",
        f"{finding.num_runs} runs, {show(finding.total_tokens, 'tokens')} tokens, {results.time},",
        f"{results.machine}.",
        f"{len(evidence.final_seeds)} final seeds, other ones for tuning, at most {evidence.max_runs} tuning runs",
        f"for each optimizer, size and ratio. Task: `{finding.task}` (data {first.data_fingerprint[:12]}),",
        f"{first.batch_tokens} tokens a step, {options}.",
        "",
        "Every model here is tiny. What holds at a few thousand parameters need not hold at a billion: the page shows",
        "what the protocol does, and how noisy small things are.",
        "",
    ]


def rungs(finding: LadderFinding) -> list[str]:
    rows = {(row.optimizer, row.size, row.tokens): row for row in finding.rows}
    body = []
    for rung in sorted(finding.rungs, key=lambda r: (r.params, r.ratio, r.optimizer != finding.baseline, r.optimizer)):
        row = rows.get((rung.optimizer, rung.size, rung.losses.horizon_tokens))
        losses = [loss for loss in rung.losses.losses if loss is not None]
        spread = f"{np.std(losses, ddof=1):.4f}" if len(losses) > 1 else "-"
        speedup: tuple[str, ...] = ("baseline", "", "")
        if row is not None:
            said = ", ".join(filter(None, (row.flag, row.judgement)))
            speedup = (show(row.speedup, "ratio"), interval(row.low, row.high), said)
        at = (rung.size, f"{rung.params:,}", f"{rung.ratio:g}x", show(rung.losses.horizon_tokens, "tokens"))
        body.append((*at, rung.optimizer, show(rung.losses.mean, "loss"), spread, len(losses), *speedup))
    heads = ("size", "parameters", "ratio", "tokens", "optimizer", "final loss", "sigma", "n", "speedup", "95 %", "")
    return table(heads, body)


def chosen(finding: LadderFinding) -> list[str]:
    ordered = sorted(finding.rungs, key=lambda rung: (rung.optimizer, rung.params, rung.ratio))
    body = [(r.optimizer, r.size, f"{r.ratio:g}x", settings(r.losses.hyperparameters), r.origin) for r in ordered]
    return table(("optimizer", "size", "ratio", "settings", "origin"), body)


def sensitivity(finding: LadderFinding) -> list[str]:
    body = []
    for name, coordinates in finding.sensitivity.items():
        for one in coordinates:
            said = f"insensitive: {show(one.shared[0], 'value')}" if one.shared else "sensitive"
            near = (f"{at}: {', '.join(show(v, 'value') for v in found)}" for at, found in one.near_optimal.items())
            body.append((name, one.coordinate, said, "; ".join(near)))
    return table(("optimizer", "hyperparameter", "", "near-optimal values by regime"), body)


def forecasts(finding: LadderFinding) -> list[str]:
    body = []
    for one in finding.forecasts:
        gap = f"{show(one.difference_nats, 'difference')} {interval(one.low, one.high, '.4f')}"
        gap = "the search kept the prediction" if one.predicted == one.found else gap
        losses = show(one.predicted_loss, "loss"), show(one.found_loss, "loss")
        body.append((one.optimizer, settings(one.predicted), losses[0], settings(one.found), losses[1], gap))
    return table(("optimizer", "predicted", "loss", "found", "loss", "predicted - found, nats"), body)


def controls(finding: LadderFinding) -> list[str]:
    body = []
    for one in finding.controls:
        lost = f"{one.num_diverged} diverged" if one.num_diverged else show(one.loss, "loss")
        saves = "-" if one.speedup is None else f"{show(one.speedup, 'ratio')} tokens"
        theirs = one.settings_of or "the defaults of its class"
        nats = show(one.difference_nats, "difference"), interval(one.low, one.high, ".4f")
        body.append((one.optimizer, theirs, one.size, lost, *nats, saves))
    heads = ("optimizer", "with the settings of", "size", "final loss", "minus tuned, nats", "95 %", "tuning saves")
    return table(heads, body)


def flips(finding: LadderFinding) -> list[str]:
    body = [
        (f.where, f.early, f"{f.fraction:.0%}", show(f.early_nats, "loss"), f.final, show(f.final_nats, "loss"))
        for f in finding.flips
    ]
    heads = ("size and ratio", "ahead early", "at", "by, nats", "ahead at the end", "by, nats")
    return table(heads, body) if body else ["None is resolved.", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="take the latest ladder of this store")
    arguments = parser.parse_args()
    if arguments.store:
        keep(arguments.store)
    PAGE.write_text(page(*kept()))


if __name__ == "__main__":
    main()
