"""recipe: the hyperparameters that tuned runs predict, published ones and those of the store."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import count
from muonlab.cli.laboratory import print_json, users_code
from muonlab.cli.show import print_parts
from muonlab.errors import UsageError

if TYPE_CHECKING:
    from muonlab.analyze.recipe import Recipe
    from muonlab.analyze.sweeps import Sweep

__all__ = ["recipe"]

RULES = ("opt.", "aux.")


def recipe(
    optimizer: Annotated[str, typer.Argument(metavar="OPTIMIZER", help=f"Name, or one of your own: {opt.OWN}.")],
    params: Annotated[
        str, typer.Option("--params", metavar="N", help="Parameters without embedding and head, such as 350M or 3.5e8.")
    ],
    tokens: Annotated[str, typer.Option("--tokens", metavar="D", help="Length of the training, such as 7B or 7e9.")],
    batch: Annotated[str | None, typer.Option("--batch", metavar="B", help="Tokens per step, if they are set.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Of the runs in the store that are to count.")] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="URL", envvar="MUONLAB_STORE", help="Where your own tuned runs are.",
                     show_default=f"{opt.DEFAULT_STORE}, if there is one"),
    ] = None,
    json: opt.Json = False,
) -> None:  # fmt: skip
    """Predict hyperparameters from a published sweep and from your own tuned runs, with intervals.

    Says how far that extrapolates and what a check would cost, and prints a constructor and a command to paste. Your
    own runs win where they tuned the learning rate within a factor of 4 of size and length.
    """
    from muonlab.analyze.recipe import recipe as recommended
    from muonlab.analyze.sweeps import published
    from muonlab.optim import catalog

    with users_code():
        info = catalog.locate(optimizer)
    own = _own(store, info.name, task)
    known = published()
    if info.name not in known and own is None:
        raise UsageError(
            f"nothing is known of tuned runs of {info.name}: the published sweep covers {', '.join(sorted(known))}, "
            "and the store has no cell where several configurations were tried"
        )
    finding = recommended(
        info.name,
        count(params, "--params"),
        count(tokens, "--tokens"),
        batch_tokens=None if batch is None else round(count(batch, "--batch")),
        published=known.get(info.name),
        own=own,
        fallback=_starts(info.named),
    )
    settings = _rule_settings(info.named, finding)
    constructor = _constructor(info.named, settings)
    command = _command(info.name, finding, settings, own.task if own and own.source == finding.source else task)
    if json:
        return print_json({**finding.to_dict(), "constructor": constructor, "command": command})
    from muonlab.report.recipe import recipe_table

    print_parts(recipe_table(finding))
    print(f"\n{constructor}\n\n{command}")


def _own(store: str | None, optimizer: str, task: str | None) -> "Sweep | None":
    """What the store has; the default one need not exist."""
    from muonlab.analyze.sweeps import own_sweep

    url = store or opt.DEFAULT_STORE
    if "://" not in url and not Path(url).exists():
        if store or task:
            raise UsageError(f"there is no store {url}: run a study first, or name another with --store")
        return None
    from muonlab.records.store import Store

    with Store(url, read_only=True) as opened:
        rows = opened.list(optimizer=optimizer)
        found = own_sweep(opened.get(row.key for row in rows).values(), optimizer, task)
    if task and found is None:
        raise UsageError(f"{url} has no cell of {optimizer} on {task} where several configurations were tried")
    return found


def _starts(named: Any) -> dict[str, tuple[Any, str]]:
    """Where a tuning starts, for what a study sweeps and no sweep has."""
    from muonlab.optim import catalog
    from muonlab.study.space import DEFAULT, starts

    swept, found = {h.name for h in catalog.space(named)}, starts(named)
    return {name: tuple(one) for name, one in found.items() if name in swept and one.source != DEFAULT}


def _rule_settings(named: Any, finding: "Recipe") -> dict[str, Any]:
    """What a constructor is given: no published eps, which goes with another machine, and no default without a grid."""
    from muonlab.optim import catalog

    unswept = {h.name: h.default for h in catalog.hyperparameters(named) if not h.grid}
    return {
        name: entry.value
        for name, entry in finding.hyperparameters.items()
        if name.startswith(RULES)
        and not (name.endswith(".eps") and "default of the class" in entry.note)
        and not (name in unswept and unswept[name] == entry.value)
    }


def _constructor(named: Any, settings: Mapping[str, Any]) -> str:
    from muonlab.optim import catalog

    arguments, cls = catalog.arguments(named, settings), catalog.get(named)
    if "aux_lr" in arguments:
        arguments["aux_lr"] = float(f"{arguments['aux_lr']:.2g}")
    name = f"muonlab.{cls.__name__}" if isinstance(named, str) else cls.__name__
    return f"{name}(model, {', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _command(optimizer: str, finding: "Recipe", rule: Mapping[str, Any], task: str | None) -> str:
    """A check for the shell: a few learning rates, two seeds each."""
    entries = finding.hyperparameters
    trainers = {
        name: entry.value for name, entry in entries.items() if not name.startswith(RULES) and name != "batch_tokens"
    }
    settings = {**rule, **trainers}
    lrs = " ".join(f"{lr:g}" for lr in finding.cost.lrs)
    seeds = " ".join(map(str, range(finding.cost.num_seeds)))
    flags = {"--optimizer": optimizer, "--tokens": f"{round(finding.tokens)}"}
    if "batch_tokens" in entries:
        flags["--batch-tokens"] = f"{entries['batch_tokens'].value}"
    words = [task or "TASK", *(word for pair in flags.items() for word in pair)]
    words += [word for name, value in settings.items() if name != "opt.lr" for word in ("--set", _setting(name, value))]
    return (
        f"for lr in {lrs}; do for seed in {seeds}; do\n"
        f"  muonlab train {shlex.join(words)} --set opt.lr=$lr --seed $seed\ndone; done"
    )


def _setting(name: str, value: Any) -> str:
    return f"{name}={str(value).lower() if isinstance(value, bool) else value}"
