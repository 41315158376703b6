"""The verbs. Heavy imports happen inside them, so that `--help` and completion stay instant."""

from typing import Annotated

import typer

import muonlab
from muonlab.cli import (
    asking,
    audit,
    batch,
    bench,
    doctor,
    features,
    ladder,
    optimizers,
    recipe,
    runs,
    scaling,
    score,
    single,
    studies,
    transfer,
)

__all__ = ["app"]

app = typer.Typer(
    name="muonlab",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Does Muon train your model faster than a well-tuned AdamW? Tunes both by the same rules on your model and "
    "data, compares final losses over seeds, and says how many tokens and how much time it saves, with intervals.",
)

app.command("demo")(studies.demo)
app.command("compare")(studies.compare)
app.command("tune")(studies.tune)
app.command("train")(single.train)
app.command("optimizers")(optimizers.optimizers)
app.command("bench")(bench.bench)
app.command("report")(studies.report)
app.command("ladder")(ladder.ladder)
app.command("batch")(batch.batch)
app.command("features")(features.features)
app.command("transfer")(transfer.transfer)
app.command("ask")(asking.ask)
app.command("tell")(asking.tell)
app.command("speedup")(scaling.speedup)
app.command("fit")(scaling.fit)
app.command("recipe")(recipe.recipe)
app.command("score")(score.score)
app.command("audit")(audit.audit)
app.add_typer(runs.app, name="runs")
app.command("doctor")(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        print(f"muonlab {muonlab.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options of the program itself."""
