"""The options that several verbs share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "DEFAULT_ARTIFACTS", "DEFAULT_STORE", "TASK", "Artifacts", "BatchTokens", "Compile", "Config", "Data",
    "Device", "DryRun", "FirstSeed", "Json", "Margin", "MaxRuns", "NoProgress", "Optimizer", "Optimizers", "Out",
    "Precision", "Set", "StoreUrl", "Task", "Threads", "Tokens", "Tune", "Variant", "Workers",
]  # fmt: skip

DEFAULT_STORE = "muonlab.db"
DEFAULT_ARTIFACTS = Path("muonlab-artifacts")

OWN = "path/to/file.py:Class or module:Class"

TASK = typer.Argument(
    metavar="TASK",
    help="text, text-synthetic; digits, mnist, fashion-mnist, cifar10, cifar100, images; matrix, components; or a task "
    f"of your own: {OWN}",
)
Task = Annotated[str, TASK]
Optimizer = Annotated[str, typer.Option("--optimizer", help=f"Name of an optimizer, or one of your own: {OWN}.")]
Optimizers = Annotated[
    str | None,
    typer.Option("--optimizers", help=f"Comma-separated names; one of your own is {OWN}.", show_default="adamw,muon"),
]
Data = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="PATH",
                 help="Text file, folder of text files or .bin token shard; images: the folder or file; repeatable."),
]  # fmt: skip
Tokens = Annotated[
    int | None,
    typer.Option("--tokens", min=1, help="Length of a run in tokens (in samples, if they have none).",
                 show_default="1000000; digits 12800, other images 256000"),
]  # fmt: skip
BatchTokens = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens", min=1, help="Tokens (or samples) per step.", show_default="4096; digits 64, other images 256"
    ),
]
MaxRuns = Annotated[
    int | None,
    typer.Option("--max-runs", min=1, help="Cap on tuning runs, per optimizer and horizon.", show_default="80"),
]
FirstSeed = Annotated[int | None, typer.Option("--seed", min=0, help="First of the final seeds.", show_default="0")]
Tune = Annotated[
    str | None,
    typer.Option("--tune", help="Comma-separated hyperparameters to tune, or all.",
                 show_default="opt.lr,opt.weight_decay"),
]  # fmt: skip
Precision = Annotated[str | None, typer.Option("--precision", help="fp32 or bf16 (autocast).", show_default="fp32")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Dotted setting for every run, e.g. task.width=64; repeatable."),
]
Variant = Annotated[
    list[str] | None,
    typer.Option("--variant", metavar="NAME=OPTIMIZER,KEY=VALUE,...",
                 help="An optimizer with settings of its own, e.g. muon-4=muon,opt.ns_steps=4; repeatable."),
]  # fmt: skip
Margin = Annotated[
    float | None,
    typer.Option("--margin", metavar="NATS",
                 help="Also say which challengers are shown to be no worse than the baseline by more than this."),
]  # fmt: skip
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE.toml", help="Study file; flags win over it.")]
StoreUrl = Annotated[
    str,
    typer.Option("--store", metavar="URL", envvar="MUONLAB_STORE", help="SQLite file or postgresql:// URL."),
]
Artifacts = Annotated[Path, typer.Option("--artifacts", metavar="DIR", help="Folder for the checkpoints of long runs.")]
Workers = Annotated[
    int, typer.Option("--workers", min=0, help="Runs at a time; 0 = one per core; on a GPU, one.", show_default=False)
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of each run.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, or auto: cuda where there is one.", show_default="auto"),
]
Compile = Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress on stderr.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how many runs and tokens and how long, and stop.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE.html", help="Where to write the report.")]
