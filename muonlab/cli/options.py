"""The options that several verbs share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Artifacts", "Compile", "Config", "Data", "Device", "DryRun", "Json", "NoProgress", "Out", "Set", "StoreUrl",
    "Task", "Threads", "Workers",
]  # fmt: skip

DEFAULT_STORE = "muonlab.db"

Task = Annotated[
    str, typer.Argument(metavar="TASK", help="text, or a task of your own: path/to/file.py:Class or module:Class")
]
Data = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="PATH", help="Text file, folder of text files or .bin token shard; repeatable."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Dotted setting for every run, e.g. task.width=64; repeatable."),
]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE.toml", help="Study file; flags win over it.")]
StoreUrl = Annotated[
    str,
    typer.Option("--store", metavar="URL", envvar="MUONLAB_STORE", help="SQLite file or postgresql:// URL."),
]
Artifacts = Annotated[Path, typer.Option("--artifacts", metavar="DIR", help="Folder for the checkpoints of long runs.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Runs at a time; 0 = one per core.", show_default=False)]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of each run.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto: cuda where there is one.")]
Compile = Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress on stderr.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how many runs and tokens and how long, and stop.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE.html", help="Where to write the report.")]
