"""What users may rely on, written down: to change it is a decision, not an accident.

After a change that is meant: `python tests/test_public_surface.py` writes the file anew; review it with the change.
"""

import inspect
import json
from pathlib import Path

import typer

import muonlab
from muonlab.cli.app import app
from muonlab.optim import catalog

SNAPSHOT = Path(__file__).with_name("public_surface.json")


def command_line(command, name="muonlab"):
    """Verb -> its arguments and options."""
    if hasattr(command, "commands"):
        found = {}
        for verb, child in command.commands.items():
            found |= command_line(child, f"{name} {verb}")
        return found
    described = [" / ".join([*p.opts, *p.secondary_opts]) for p in command.params if p.name != "help"]
    return {name: sorted(described)}


def surface():
    optimizers = {name: catalog.get(name) for name in catalog.names()}
    return {
        "muonlab": sorted(muonlab.__all__),
        "muonlab.optim": sorted(muonlab.optim.__all__),
        "signatures": {name: str(inspect.signature(cls)) for name, cls in optimizers.items()},
        "hyperparameters": {name: [h.name for h in catalog.hyperparameters(name)] for name in optimizers},
        "command line": command_line(typer.main.get_command(app)),
    }


def test_the_public_surface_is_the_one_that_was_reviewed():
    assert surface() == json.loads(SNAPSHOT.read_text())


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(surface(), indent=2) + "\n")
