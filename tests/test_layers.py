"""Who may import whom: the layers as data, and every module of the package held to them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "muonlab"

ALL = {"errors", "roles"}  # the vocabulary that everybody shares
LAYERS = {
    # package: (packages of ours, third-party packages); modules at the top count as packages
    "__init__": ({"optim"}, set()),
    "__main__": ({"cli"}, set()),
    "errors": (set(), set()),
    "roles": (set(), set()),
    "user_code": (set(), set()),
    "representations": (set(), {"numpy"}),
    "kernels": (set(), {"torch"}),
    "optim": ({"kernels", "user_code"}, {"torch"}),
    "records": (set(), {"numpy", "sqlalchemy", "alembic"}),
    "tasks": ({"records", "representations", "user_code"}, {"torch", "numpy"}),
    "train": ({"kernels", "optim", "tasks", "records", "representations"}, {"torch", "numpy"}),
    "execute": ({"train", "records"}, set()),
    "study": ({"execute", "train", "tasks", "optim", "records", "analyze"}, {"numpy", "pydantic"}),
    "analyze": ({"records", "representations"}, {"numpy", "scipy"}),
    "report": ({"analyze", "records"}, {"matplotlib", "jinja2", "rich"}),
    "bench": ({"kernels", "optim"}, {"torch"}),  # and peers by name, when they are measured
    "integrations": ({"optim"}, set()),
    "testing": ({"optim", "kernels", "user_code"}, {"torch"}),
    "cli": (
        {"kernels", "optim", "records", "tasks", "train", "execute", "study", "analyze", "report", "bench",
         "integrations"},
        {"typer"},
    ),
}  # fmt: skip
LAZY = {
    # what may be imported where it is used, and not before
    "kernels": {"triton"},
    "records": {"psycopg"},
    "tasks": {"pooch"},  # when a data set is fetched
    "train": {"sklearn"},
    "execute": {"torch", "ray"},
    "study": {"torch"},  # the number of threads, while a dry run takes the time of a few steps
    "report": {"markupsafe", "numpy"},  # jinja2's own, and matplotlib's
    "integrations": {"transformers", "lightning", "accelerate", "torchtitan", "torch"},
    "cli": {"torch", "rich"},
}
STDLIB = sys.stdlib_module_names


def imports(tree):
    """(module imported, name taken from it or "", whether it is imported when the module itself is) of a file."""
    at_once = {id(node) for node in _outside_functions(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", id(node) in at_once
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                yield node.module, alias.name, id(node) in at_once
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from ((arg.value, "", id(node) in at_once) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def _outside_functions(node):
    """Nodes that run on import: not those of functions, nor of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield child
        yield from _outside_functions(child)


def violations(package):
    """One line per import that the layers forbid."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        layer = parts[0].removesuffix(".py")
        if layer not in LAYERS:
            found.append(f"{'/'.join(parts)}: package {layer} is in no layer")
            continue
        ours, third_party = LAYERS[layer]
        for module, name, at_once in imports(ast.parse(path.read_text())):
            top, _, rest = module.partition(".")
            if top == "muonlab":
                other = rest.partition(".")[0] or name
                if other in ("", "__version__") or other == layer or other in ours | ALL:
                    continue
                found.append(f"{'/'.join(parts)}: {layer} may not import {other}")
            elif top not in STDLIB and top not in third_party and (at_once or top not in LAZY.get(layer, ())):
                found.append(f"{'/'.join(parts)}: {layer} may not import {top}{' at once' if at_once else ''}")
    return found


def test_every_import_is_one_that_its_layer_allows():
    assert violations(PACKAGE) == []


def test_the_layers_are_layers():
    """No circle; nobody imports the command line but the entry point."""
    order, left = [], {name: set(ours) for name, (ours, _) in LAYERS.items()}
    while left:
        free = [name for name, ours in left.items() if not ours & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        order += free
        left = {name: ours for name, ours in left.items() if name not in free}
    assert [name for name, (ours, _) in LAYERS.items() if "cli" in ours] == ["__main__"]


PLANTED = {
    "kernels reach up": ("kernels/polar.py", "from muonlab.optim import Muon"),
    "analysis sees tensors": ("analyze/speedup.py", "import torch"),
    "a lazy import is one too": ("analyze/speedup.py", "def f():\n    import torch"),
    "a task knows an optimizer": ("tasks/text.py", "from muonlab.optim.engine import Engine"),
    "under another name": ("records/spec.py", "from muonlab import study"),
    "as a whole": ("report/page.py", "import muonlab.study.compare as c"),
    "by its name": ("optim/engine.py", 'import importlib\nimportlib.import_module("muonlab.records")'),
    "somebody imports the command line": ("study/plan.py", "def f():\n    from muonlab.cli import app"),
    "torch at once": ("cli/app.py", "import torch"),
    "torch at once, in a class": ("cli/app.py", "class A:\n    import torch"),
    "torch at once, in a branch": ("execute/local.py", "try:\n    import torch\nexcept ImportError:\n    pass"),
    "a new dependency": ("records/store.py", "def f():\n    import pandas"),
    "what finds a user's code knows no torch": ("user_code.py", "import torch"),
    "a new package": ("plugins/new.py", "x = 1"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_import_is_found(tmp_path, what):
    place, line = PLANTED[what]
    path = tmp_path / "muonlab" / place
    path.parent.mkdir(parents=True)
    path.write_text(f'"""A module."""\nimport os\nfrom muonlab.errors import UsageError\n{line}\n')
    (tmp_path / "muonlab" / "records").mkdir(exist_ok=True)
    (tmp_path / "muonlab" / "records" / "other.py").write_text(
        "from muonlab.roles import Role\nimport sqlalchemy as sa\n"
    )
    assert [found.partition(":")[0] for found in violations(tmp_path / "muonlab")] == [place]


BLOCKED = """
import importlib, sys
from importlib.machinery import PathFinder

class Filter:
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Filter()
for name in {modules!r}:
    importlib.import_module(name)
{code}
"""
LAB = ("numpy", "scipy", "sqlalchemy", "alembic", "pydantic", "typer", "rich", "matplotlib", "jinja2", "psycopg")
STEP = """
import torch, muonlab
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
for optimizer in (muonlab.Muon(model), muonlab.AdamW(model.parameters()), muonlab.SGD(model.parameters(), lr=0.1)):
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
assert all(p.isfinite().all() for p in model.parameters())
"""


def modules(*packages):
    return [
        ".".join(["muonlab", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        for package in packages
        for path in sorted((PACKAGE / package).rglob("*.py"))
    ]


@pytest.mark.parametrize(
    ("names", "blocked", "code"),
    [
        (["muonlab", *modules("kernels", "optim", "bench")], LAB, STEP),
        (["muonlab", *modules("analyze", "report")], ("torch", "typer", "pydantic"), ""),
        ([m for m in modules("records") if "migrations" not in m], ("torch", "scipy"), ""),
        (["muonlab", "muonlab.cli.app"], ("torch", "scipy", "matplotlib"), ""),
    ],
    ids=("the optimizers need torch alone", "analysis and reports need no torch", "records", "the command line"),
)
def test_it_works_without(names, blocked, code):
    text = BLOCKED.format(blocked=set(blocked), modules=names, code=code)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", text], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
