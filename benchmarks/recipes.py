"""The table of tuned configurations that `muonlab recipe` predicts from, made of a published sweep.

`python benchmarks/recipes.py CONFIGS.csv --out muonlab/analyze/recipes.json` reads a CSV with the columns optimizer,
params, tokens, config_json, one tuned configuration a line, under the names of the sweep's own code. It writes our
names, what differs between their convention and ours, and prints how well the laws fit: per optimizer at how many cells
the predicted lr is within a step of the grid of the tuned one, and what the largest size says when it is held out.
"""

import argparse
import csv
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from muonlab.analyze.laws import fit_law, within_a_step
from muonlab.analyze.sweeps import Sweep, sweep_of
from muonlab.optim import catalog

SEQUENCE_TOKENS = 4096
SOURCE = "Wen et al. 2025 (2509.02046)"
CITATION = (
    'Wen, Hall, Ma, Liang 2025, "Fantastic Pretraining Optimizers and Where to Find Them", arXiv 2509.02046: the tuned '
    "configurations of the authors' sweep code (marin-community/marin, experiments/optimizer_sweep), one per "
    "optimizer, size and length; LLaMA-2 style models of 130M to 1.2B parameters without embeddings, 1x to 16x "
    "Chinchilla"
)
OURS = {"mini": "adam_mini"}
NAMES = {
    "learning_rate": "opt.lr", "weight_decay": "opt.weight_decay", "beta1": "opt.beta1", "beta2": "opt.beta2",
    "gamma": "opt.gamma", "epsilon": "opt.eps", "momentum": "opt.momentum", "shampoo_beta": "opt.shampoo_beta",
    "precondition_frequency": "opt.precondition_frequency", "preconditioner_lr": "opt.precondition_lr",
    "preconditioner_update_probability": "opt.update_probability", "update_prob_flat_start": "opt.update_flat_steps",
    "max_grad_norm": "clip", "train_batch_size": "batch_tokens", "warmup": "schedule.warmup_fraction",
    "decay": "schedule.decay_fraction", "lr_schedule": "schedule.kind", "min_lr_ratio": "schedule.final_fraction",
}  # fmt: skip
OWN_NAMES = {  # of an optimizer, where the same name means another thing
    "muon": {
        "beta1": "aux.beta1", "beta2": "aux.beta2", "epsilon": "aux.eps", "muon_epsilon": "opt.eps",
        "muon_to_adam_lr": "aux.lr_ratio",
    },
    "scion": {"beta1": "aux.momentum", "scion_epsilon": "opt.eps", "scion_to_signum_lr": "aux.lr_ratio"},
    "kron": {"beta1": "opt.momentum"},
}  # fmt: skip
LEFT_OUT = {
    "nesterov": "part of the rule here",
    "block_size": "matrices are not split into blocks here",
    "partition_grads_into_blocks": "matrices are not split into blocks here",
    "normalize_grads": "part of the rule here",
    "preconditioner_init_scale": "the factors start at the identity here",
}
SHAPES = {"linear": "wsd"}  # of their decay, over the last `decay` of the run
SCALE = "lr goes with their scale of a matrix's step, sqrt(max(1, rows / columns)): adjust_lr_fn="
CLIPPED = "theirs clips the gradients of what is no matrix only; clip here is the global norm of all"
DIFFERS = {
    "muon": [f'{SCALE}None (or "original") here, the default; under any other, lr means another thing', CLIPPED],
    "scion": [f'{SCALE}"original" here; the default "spectral" differs for wide matrices', CLIPPED],
    "soap": [
        "theirs splits matrices into blocks of 256 or 512, ours does not",
        "theirs has no companion: what aux.* should be here is ours, untuned",
    ],
    "kron": [
        "theirs splits matrices into blocks of 256 and scales gradients to norm 1, ours does not split and scales them "
        "to a root mean square of 1: the direction is the same",
        "theirs has no companion: what aux.* should be here is ours, untuned",
    ],
    "sophia": ["ours floors the curvature at eps, as the paper does, where theirs adds eps"],
    "adam_mini": ["vectors are blocks like the rest here, where theirs have a plain Adam"],
}
SHAPE_UNKNOWN = (
    "the table does not say how lr decays, only that it ends at 0 (their library's default is a cosine): the schedule "
    "here is your choice"
)
DECOUPLED = 'weight decay is decoupled and times lr, as decay="decoupled" here, the default'
GRIDS = {  # of the trainer's, of which only the steps count: theirs of warmup is in steps
    "schedule.warmup_fraction": (500, 1000, 2000, 4000), "schedule.decay_fraction": (0.2, 0.4, 0.6, 0.8, 1.0),
    "batch_tokens": tuple(count * SEQUENCE_TOKENS for count in (128, 256, 512, 1024)),
}  # fmt: skip
SETTINGS = {"scion": {"opt.adjust_lr_fn": "original"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, help="CSV: optimizer, params, tokens, config_json")
    parser.add_argument("--out", type=Path, required=True, help="the data file")
    arguments = parser.parse_args()
    document = made(read(arguments.configs))
    arguments.out.write_text(dumped(document))
    print(tables({name: sweep_of(name, document) for name in document["optimizers"]}))


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Optimizer -> its cells, each with `params`, `tokens` and the configuration under their names."""
    found = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            cell = {"params": int(row["params"]), "tokens": int(row["tokens"])}
            found[OURS.get(row["optimizer"], row["optimizer"])].append({**cell, **json.loads(row["config_json"])})
    return dict(found)


def made(cells: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "source": SOURCE,
        "citation": CITATION,
        "made_by": "benchmarks/recipes.py",
        "num_cells": sum(map(len, cells.values())),
        "names": {
            "all": NAMES,
            **OWN_NAMES,
            "units": f"train_batch_size: sequences of {SEQUENCE_TOKENS} tokens; warmup: steps, here a share of the run",
        },
        "optimizers": {name: optimizer(name, rows) for name, rows in cells.items()},
    }


def optimizer(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = NAMES | OWN_NAMES.get(name, {})
    theirs = list(dict.fromkeys(key for row in rows for key in row if key not in ("params", "tokens")))
    unknown = [key for key in theirs if key not in names and key not in LEFT_OUT]
    if unknown:
        raise SystemExit(f"{name}: no name here for {', '.join(unknown)}")
    kept = [key for key in theirs if key in names]
    values = {names[key]: [converted(key, row) for row in rows] for key in kept}
    grids = GRIDS | {h.name: h.grid for h in catalog.space(name)}
    return {
        "cells": [[row["params"], row["tokens"]] for row in rows],
        "values": values,
        "grids": {key: list(grid) for key, grid in grids.items() if key in values},
        "settings": SETTINGS.get(name, {}),
        "differs": [*DIFFERS.get(name, []), DECOUPLED, *([] if "lr_schedule" in theirs else [SHAPE_UNKNOWN])],
        "left_out": {key: LEFT_OUT[key] for key in theirs if key in LEFT_OUT},
    }


def converted(key: str, row: dict[str, Any]) -> Any:
    """A value of theirs in our unit."""
    value = row.get(key)
    if key == "train_batch_size":
        return value * SEQUENCE_TOKENS
    if key == "warmup":
        value = value * row["train_batch_size"] * SEQUENCE_TOKENS / row["tokens"]
        return float(f"{value:.6g}")
    if key == "lr_schedule":
        return SHAPES[value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def dumped(document: dict[str, Any]) -> str:
    """JSON with lists of plain values on one line."""
    text = json.dumps(document, indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def tables(sweeps: dict[str, Sweep]) -> str:
    """What docs/recipe.md shows."""
    lines = [
        "| optimizer | cells | lr within a step | A (N) | B (D) | largest size held out: off by at most | inside |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, sweep in sweeps.items():
        points, grid = sweep.points("opt.lr"), sweep.grids.get("opt.lr", ())
        law = fit_law(points, "opt.lr", grid)
        held, near = law.held_out, within_a_step(law, points, grid)
        exponents = (
            f"{law.parameters[x]:.2f} [{law.intervals[x][0]:.2f}, {law.intervals[x][1]:.2f}]" for x in ("A", "B")
        )
        lines.append(
            f"| {name} | {len(points)} | {near} of {len(points)} | {' | '.join(exponents)} | "
            f"{held.worst_factor:.2f}x | {held.num_inside} of {held.num_cells} |"
        )
    lines += ["", "| optimizer | hyperparameter | held out: off by at most | inside |", "|---|---|---|---|"]
    for name, sweep in sweeps.items():
        for coordinate in sweep.values:
            law = fit_law(sweep.points(coordinate), coordinate, sweep.grids.get(coordinate, ()))
            if coordinate != "opt.lr" and law.form != "constant" and law.held_out:
                held = law.held_out
                worst = "no law" if held.worst_factor is None else f"{held.worst_factor:.2f}x"
                lines.append(f"| {name} | {coordinate} | {worst} | {held.num_inside} of {held.num_cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
