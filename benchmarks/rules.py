"""A step of each optimizer beside another implementation of it: ratios of interleaved runs, in one process.

`python benchmarks/rules.py --out benchmarks/results/rules.json` (`pip install 'muonlab[peers]'` brings the others).
Every tenth step of SOAP and Shampoo renews its bases, so a round is the mean of ten steps. Everything runs eagerly:
heavyball, which otherwise compiles itself for minutes, is told not to.
"""

import argparse
import importlib
import io
import json
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from muonlab.bench.peers import Contender
from muonlab.bench.sets import find_set
from muonlab.bench.timing import Stepper, interleave, ratios, spread
from muonlab.optim import catalog
from muonlab.train.environment import environment

STEPS = 10
PO, HB = "pytorch_optimizer", "heavyball"
NORM = {"weight_decay": 0.1}


def torch_one(name: str, **settings: Any) -> Contender:
    return Contender("torch.optim", name, "torch", {**NORM, **settings})


def po(name: str, group: dict[str, Any] | None = None, **settings: Any) -> Contender:
    return Contender(PO, name, PO, {**NORM, **settings}, None, group or {})


def hb(name: str, **settings: Any) -> Contender:
    return Contender(HB, name, HB, {**NORM, **settings})


MUON = {"use_muon": True}
# What others there are of the same algorithm, and our settings where the defaults differ.
OTHERS: dict[str, tuple[dict[str, Any], tuple[Contender, ...]]] = {
    "adamw": ({}, (torch_one("AdamW", fused=True), torch_one("AdamW", foreach=False))),
    "nadamw": ({}, (torch_one("NAdam", decoupled_weight_decay=True),)),
    "cautious": ({}, (hb("AdamW", caution=True),)),
    "adopt": ({}, (po("ADOPT", weight_decouple=True),)),
    "ademamix": ({}, (po("AdEMAMix", weight_decouple=True),)),
    "mars": ({}, (po("MARS", weight_decouple=True),)),
    "lion": ({}, (po("Lion"),)),
    "signum": ({}, (po("Tiger"),)),
    "sgd": ({"momentum": 0.9}, (torch_one("SGD", momentum=0.9),)),
    "muon": ({}, (torch_one("Muon"), po("Muon", MUON))),
    "normuon": ({}, (po("NorMuon", MUON),)),
    "adamuon": ({}, (po("AdaMuon", MUON),)),
    "scion": ({}, (po("SCION"),)),
    "soap": ({}, (po("SOAP", precondition_frequency=10), hb("SOAP", precondition_frequency=10))),
    "shampoo": ({"precondition_frequency": 10}, (po("ScalableShampoo", preconditioning_compute_steps=10),)),
    "kron": ({"update_probability": 1.0}, (po("Kron", pre_conditioner_update_probability=1.0),)),
}


def ours(name: str, settings: dict[str, Any]) -> Contender:
    own = {**NORM, **settings} if name not in ("muon_hyperball", "adam_hyperball") else settings
    return Contender("muonlab", catalog.get(name).__name__, "muonlab", own)


def timer(contender: Contender, weights: list[nn.Parameter], gradients: list, buffers: list) -> Callable[[], float]:
    """Seconds of a step, the mean of ten; warmed up."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        stepper = Stepper(contender.build(weights), weights, gradients, buffers, "cpu")
        for _ in range(STEPS + 2):
            stepper.seconds()

    def seconds() -> float:
        total = 0.0
        for _ in range(STEPS):
            stepper.refresh()
            started = time.perf_counter()
            stepper.optimizer.step()
            total += time.perf_counter() - started
        return total / STEPS

    return seconds


def rows_of(set_name: str, names: list[str], num_rounds: int) -> list[dict[str, Any]]:
    found = find_set(set_name)
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for shape in found.shapes]
    buffers = [torch.empty_like(g) for g in gradients]
    rows = []
    for name in names:
        if found.rule == "adamw" and catalog.get(name).companion:  # matrices are not what the set is about
            continue
        settings, others = OTHERS.get(name, ({}, ()))
        timers = {}
        for one in (ours(name, settings), *others):
            label = f"{one.optimizer}({', '.join(f'{k}={v}' for k, v in one.settings.items())})"
            weights = [nn.Parameter(0.02 * g.flip(0)) for g in gradients]
            try:
                if one.module == HB:
                    importlib.import_module(HB).utils.compile_mode = None
                timers[label] = timer(one, weights, gradients, buffers)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"[:200]
                rows.append({"set": set_name, "name": name, "optimizer": label, "skipped": reason})
                print(f"{set_name:12s} {label[:90]:90s} {reason}", flush=True)
        rounds = interleave(timers, num_rounds)
        mine = next(iter(rounds))
        for label, times in rounds.items():
            kept, ratio = spread([t for t in times if t is not None]), spread(ratios(rounds[mine], times))
            rows.append({
                "set": set_name, "name": name, "optimizer": label, "median_seconds": kept.median,
                "ours_over_this": ratio.median, "low": ratio.low, "high": ratio.high, "num_rounds": ratio.num_rounds,
            })  # fmt: skip
            print(f"{set_name:12s} {label[:90]:90s} {kept.median * 1e3:9.3f} ms   {ratio.median:6.3f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default="d64,d128")
    parser.add_argument("--names", default=",".join(catalog.names()))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for name in options.sets.split(",") for row in rows_of(name, options.names.split(","), options.rounds)]
    document = {"machine": environment("cpu") | {"threads": options.threads}, "steps_per_round": STEPS, "rows": rows}
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
