"""Do margins and ranks at one loss depend on the optimizer? On components whose every constant is known: runs and page.

python studies/components.py --store components.db   # makes the runs, keeps them, and writes docs/components.md
python studies/components.py                         # writes the page again, from what was kept
"""

import argparse
import gzip
import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from writing import table

from muonlab.records import Record, RunSpec
from muonlab.records.record import Series, json_text
from muonlab.records.spec import Schedule
from muonlab.records.watch import Watch
from muonlab.tasks.components import Components

RESULTS = Path(__file__).with_name("components_results.json.gz")
PAGE = Path(__file__).parents[1] / "docs" / "components.md"

LOSSES = (0.5, 0.1)
ROTATIONS = range(5)
NUM_LOOKS = 200  # at a run, evenly spaced in log steps
FIRST_LOOK = 20
SAME = 0.02  # of the larger of two values, within which they count as alike
MEASURES = {
    "margin_mean": "mean margin",
    "margin_min": "least margin",
    "margin_min_over_norm": "least margin / norm of W",
    "rank_weight": "rank of W",
    "rank_logits": "rank of logits",
}
WAYS = {  # name -> optimizer, its settings, steps of a run; a learning rate so small that halving it changes little
    "GD": ("sgd", {"lr": 1.0, "momentum": 0.0}, 2600),
    "sign": ("signum", {"lr": 0.0025, "momentum": 0.0}, 800),
    "Adam": ("adamw", {"lr": 0.0025, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0}, 1100),
    "Muon": ("muon", {"lr": 0.025, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "polar": "exact"}, 600),
}
SLOWER = 4  # along the axes an element-wise step moves few elements, so runs are so many times as long


@dataclass(frozen=True)
class Case:
    """One kind of data, in random bases or along the axes."""

    kind: str
    aligned: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}, {'along the axes' if self.aligned else 'random bases'}"

    @property
    def rotations(self) -> range:
        return ROTATIONS[:1] if self.aligned else ROTATIONS

    def spec(self, way: str, rotation: int, factor: float = 1.0) -> RunSpec:
        """`factor` scales the learning rate, and the length the other way."""
        import torch

        from muonlab.optim import catalog

        optimizer, settings, steps = WAYS[way]
        steps *= SLOWER if self.aligned and way in ("sign", "Adam") else 1
        hyperparameters = {f"opt.{name}": value for name, value in {**settings, "lr": settings["lr"] * factor}.items()}
        options = {"kind": self.kind} | ({"aligned": True} if self.aligned else {"rotation": rotation})
        return RunSpec(
            task="components",
            optimizer=optimizer,
            horizon_tokens=round(steps / factor),
            batch_tokens=1,
            task_options=options,
            hyperparameters=hyperparameters,
            polar=catalog.polar_description(optimizer, hyperparameters),
            schedule=Schedule(kind="constant", warmup_fraction=0.0),
            clip=0.0,
            torch=torch.__version__,
            numerics={"task": Components.numerics_version, "rule": catalog.locate(optimizer).numerics},
        )


CASES = (
    Case("frequency"),
    Case("frequency", aligned=True),
    Case("hierarchy"),
    Case("hierarchy", aligned=True),
    Case("symmetric"),
)
HALVED = 0.5  # the factor of the learning rate in the runs that say how much it matters


def every_spec() -> list[RunSpec]:
    specs = [case.spec(way, rotation) for case in CASES for rotation in case.rotations for way in WAYS]
    return specs + [CASES[0].spec(way, 0, HALVED) for way in WAYS]


def make(url: str, workers: int) -> list[Record]:
    """Every run, through a store."""
    from muonlab.execute.executor import Observation
    from muonlab.execute.local import LocalExecutor
    from muonlab.execute.runner import Runner
    from muonlab.records.store import Store

    found: dict[str, Record] = {}
    with Store(url) as store:
        for steps in sorted({spec.num_steps for spec in every_spec()}):
            looks = np.unique(np.geomspace(FIRST_LOOK, steps, NUM_LOOKS).round().astype(int))
            specs = [spec for spec in every_spec() if spec.num_steps == steps]
            observation = Observation(Watch(eval_steps=frozenset(looks.tolist())))
            found |= Runner(store, LocalExecutor(workers=workers), observation)(specs)
    return list(found.values())


def keep(records: Iterable[Record]) -> None:
    """Losses and measures where they are looked at, to six digits."""
    kept = []
    for record in records:
        probes = {name: Series(one.steps, _rounded(one.values)) for name, one in record.probes.items()}
        lean = {"train_steps": (), "train_loss": (), "eval_loss": _rounded(record.eval_loss), "probes": probes}
        kept.append(replace(record, **lean).to_dict())
    kept.sort(key=lambda values: values["key"])
    RESULTS.write_bytes(gzip.compress(json_text(kept).encode(), mtime=0))


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def kept() -> list[Record]:
    return [Record.from_dict(values) for values in json.loads(gzip.decompress(RESULTS.read_bytes()))]


def at_loss(record: Record, loss: float) -> dict[str, float]:
    """Every measure where the run first has that loss, between looks linear in the logarithm of the loss.

    Raises   ValueError for a run that does not reach it between its first look and its last
    """
    losses = np.array(record.eval_loss)
    if not losses[0] > loss >= losses.min():
        raise ValueError(f"run {record.key[:12]} has no loss of {loss:g} between its looks")
    end = int((losses <= loss).argmax()) + 1
    part = slice(end - 2, end)
    points = -np.log(losses[part])
    return {
        name: float(np.interp(-math.log(loss), points, record.probes[f"components.{name}"].values[part]))
        for name in MEASURES
    }


Found = dict[tuple[Case, str, float], dict[str, np.ndarray]]  # by case, way and loss: measures over rotations


def measured(records: Sequence[Record]) -> Found:
    """Raises   KeyError if a run is missing"""
    done = {record.key: record for record in records if record.outcome == "ok"}
    found: Found = {}
    for case in CASES:
        for way in WAYS:
            for loss in LOSSES:
                runs = [at_loss(done[_key(case, way, rotation, records)], loss) for rotation in case.rotations]
                found[case, way, loss] = {name: np.array([run[name] for run in runs]) for name in MEASURES}
    return found


def _key(case: Case, way: str, rotation: int, records: Sequence[Record], factor: float = 1.0) -> str:
    """Of the run as it was then."""
    spec = case.spec(way, rotation, factor)
    rules = {record.spec.optimizer: record.spec.numerics for record in records}
    return replace(spec, torch=records[0].spec.torch, numerics=rules[spec.optimizer]).key


def halved(records: Sequence[Record]) -> dict[str, float]:
    """By measure, the largest change of any way at either loss when the learning rate is halved."""
    done = {record.key: record for record in records}
    changes = dict.fromkeys(MEASURES, 0.0)
    for way in WAYS:
        pair = [done[_key(CASES[0], way, 0, records, factor)] for factor in (1.0, HALVED)]
        for loss in LOSSES:
            a, b = (at_loss(run, loss) for run in pair)
            changes = {name: max(change, abs(a[name] - b[name])) for name, change in changes.items()}
    return changes


def answers(found: Found) -> Iterator[tuple[str, ...]]:
    """Of each claim in each case: whether Muon's value is above that of every other way in every basis."""
    claims = ("margin_min", "margin_min_over_norm", "rank_weight", "rank_logits")
    for case in CASES:
        for loss in LOSSES:
            yield case.name, f"{loss:g}", *(_answer(found, case, loss, name) for name in claims)


def _answer(found: Found, case: Case, loss: float, name: str) -> str:
    ours = found[case, "Muon", loss][name]
    sides = {way: side(ours, found[case, way, loss][name]) for way in WAYS if way != "Muon"}
    if set(sides.values()) == {"above"}:
        return "holds"
    parts = (f"{side} {way}" for way, side in sides.items() if side != "above")
    return f"fails: {', '.join(parts)}"


def side(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Where our values lie, basis by basis; margins may be negative."""
    gaps = (ours - theirs) / np.maximum(abs(ours), abs(theirs))
    if (gaps > SAME).all():
        return "above"
    if (gaps < -SAME).all():
        return "below"
    return "like" if (abs(gaps) <= SAME).all() else "mixed with"


def rows(found: Found, case: Case, loss: float) -> Iterator[tuple[str, ...]]:
    for way in WAYS:
        values = found[case, way, loss]
        yield way, *(_spread(values[name]) for name in MEASURES)


def _spread(values: np.ndarray) -> str:
    low, mid, high = (f"{value:.3g}" for value in (values.min(), np.median(values), values.max()))
    return mid if low == high else f"{mid} ({low} to {high})"


def page(records: Sequence[Record]) -> str:
    found = measured(records)
    lines = [*_heading(records), "## What is claimed, and where it holds", "", *_wrapped(CLAIMED), ""]
    heads = ("data", "loss", "largest least margin", "largest least margin / norm", "highest rank of W", "of logits")
    lines += table(heads, answers(found))
    for case in CASES:
        lines += [f"## {case.name[0].upper()}{case.name[1:]}", ""]
        for loss in LOSSES:
            lines += table((f"at loss {loss:g}", *MEASURES.values()), rows(found, case, loss))
    return "\n".join(lines)


def _heading(records: Sequence[Record]) -> list[str]:
    settings = ("lr", "momentum", "beta1", "beta2")
    ways = "; ".join(
        f"{way}: {optimizer}, " + ", ".join(f"{name} {asked[name]:g}" for name in settings if name in asked)
        for way, (optimizer, asked, _) in WAYS.items()
    )
    task = Components()
    changes = ", ".join(f"{change:.2g} ({MEASURES[name]})" for name, change in halved(records).items())
    text = f"""
    {len(records)} runs of the task `components`, {records[0].environment.get("machine")}, torch
    {records[0].spec.torch}: a linear classifier of {task.num_classes} classes in {task.dim} dimensions, from zero, in
    float64, on all data at every step; {len(ROTATIONS)} random bases, or one along the axes. {ways}. No decay, no
    warmup, constant lr; Muon's polar factor is exact. Each value is read where the run first has the loss named.
    On the first data in one basis, at half the learning rate and either loss, no way's values change by more than
    {changes}."""
    return [
        "# Components: margins and ranks at one loss",
        "",
        "Written by `python studies/components.py` from `studies/components_results.json.gz`, which holds every run;",
        "with `--store components.db` the runs are made again.",
        "",
        *_wrapped(text),
        "",
    ]


CLAIMED = f"""
Ruan et al. 2026 (2606.09658) prove, says the abstract, that in a multi-component classification problem Muon has a
larger margin and a higher effective rank than Adam and SGD. The full text is not known to us: the data and all
definitions here are ours (`muonlab/tasks/components.py`). *Holds*: Muon's value is above that of all others in
every basis, by more than {SAME:.0%} of the larger; *like*: within {SAME:.0%} in every basis; *mixed with*: it
depends on the basis, or lies on that border. The classes of `symmetric` are equally frequent; the components of
`hierarchy` are shared by classes. Below, the median over bases (least to largest). The margin of a sample is the
logit of its class less the largest other one; the norm is the spectral one; ranks are effective ranks
(`muonlab/representations.py`), not centred."""


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 118, break_on_hyphens=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="make the runs that it does not hold, and keep all")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    asked = parser.parse_args()
    if asked.store:
        keep(make(asked.store, asked.workers))
    PAGE.write_text(page(kept()))


if __name__ == "__main__":
    main()
