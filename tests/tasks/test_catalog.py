import doctest
import hashlib
import inspect
import pickle
import sys

import pytest
import torch

from muonlab.errors import UsageError
from muonlab.roles import Role
from muonlab.tasks import catalog
from muonlab.tasks.catalog import fingerprint, flops_per_token, locate, resolve, roles_of
from muonlab.tasks.text import Text

USER = """
from dataclasses import dataclass
import torch

@dataclass
class Point:
    x: int

class Task:
    tokens_per_sample = 1

    def __init__(self, width=3, depth=None):
        if width < 0:
            raise RuntimeError("negative\\nwidth")
        self.width = width

    def build(self):
        return torch.nn.Linear(2, self.width)

    def batch(self, seed, start, count):
        return torch.zeros(count, 2)

    def loss(self, model, batch):
        return model(batch).square().mean()

    def evaluation(self):
        yield self.batch(0, 0, 1), 1

class Needy(Task):
    def __init__(self, size):
        self.size = size

class Reader(Task):
    def __init__(self, data=(), **anything):
        self.data, self.anything = data, anything

class Half:
    tokens_per_sample = 1
    def build(self): ...
    def loss(self, model, batch): ...

class Timeless(Task):
    tokens_per_sample = None

class Rich(Task):
    def roles(self, model):
        return {"weight": "head", "bias": "vector"}
    def flops_per_token(self, model):
        return 7
    def fingerprint(self):
        return "abc"

class Forgetful(Task):
    def roles(self, model):
        return {"weight": "head"}

class Confused(Task):
    def roles(self, model):
        return {"weight": "heads", "bias": "vector"}

class Phantom(Task):
    def roles(self, model):
        return {"weight": "head", "bias": "vector", "wieght": "head"}

function = len
"""


@pytest.fixture
def user(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(USER)
    return path


def test_our_text_task():
    info = locate("text")
    assert (info.name, info.source, info.numerics) == ("text", "", {"task": "1"})
    assert info.options["width"] == Text.width and info.options["seq_len"] == 64 and "data" not in info.options
    task = resolve("text", {"width": 16, "seq_len": 8})
    assert task == Text(width=16, seq_len=8)


def test_data_reaches_the_text_task(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" * 1000)
    assert resolve("text", {}, (str(path),)).data == (str(path),)


def test_a_file_of_the_user(user):
    info = locate(f"{user}:Task")
    assert info.name == "mine:Task" and info.source == str(user)
    assert info.numerics == {"task": hashlib.sha256(user.read_bytes()).hexdigest()}
    assert info.options == {"width": 3, "depth": None}
    assert resolve(f"{user}:Task", {"width": 5}).width == 5
    assert resolve(info.name, {"width": 5}, source=info.source).width == 5  # as a child process finds it
    assert locate(info.name, info.source) == info


def test_a_relative_path_is_made_absolute(user, monkeypatch):
    monkeypatch.chdir(user.parent)
    assert locate("mine.py:Task").source == str(user)
    monkeypatch.chdir("/")
    assert resolve("mine:Task", {}, source=str(user)).width == 3


def test_the_module_of_a_file_can_be_pickled_and_runs_once(user):
    cls = type(resolve(f"{user}:Task", {}))
    assert type(resolve(f"{user}:Task", {})) is cls
    point = sys.modules[cls.__module__].Point(3)
    assert pickle.loads(pickle.dumps(point)) == point


def test_an_edited_file_is_read_again(user):
    before = locate(f"{user}:Task")
    user.write_text(USER.replace("width=3", "width=4"))
    after = locate(f"{user}:Task")
    assert after.options["width"] == 4 and after.numerics != before.numerics
    assert resolve(f"{user}:Task", {}).width == 4


def test_a_file_may_import_its_neighbours_and_shadow_nothing(tmp_path):
    (tmp_path / "neighbour_of_task.py").write_text("WIDTH = 11\n")
    path = tmp_path / "random.py"
    path.write_text("from neighbour_of_task import WIDTH\n" + USER.replace("width=3", "width=WIDTH"))
    import random

    before = list(sys.path)
    assert resolve(f"{path}:Task", {}).width == 11
    assert sys.path == before and sys.modules["random"] is random


def test_an_importable_module(user, monkeypatch):
    path = user.rename(user.with_name("importable_task.py"))
    monkeypatch.syspath_prepend(path.parent)
    info = locate("importable_task:Task")
    assert (info.name, info.source) == ("importable_task:Task", "")
    assert info.numerics == {"task": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert resolve("importable_task:Task", {"width": 2}).width == 2


def test_data_and_free_options(user):
    task = resolve(f"{user}:Reader", {"a": 1}, ("x", "y"))
    assert task.data == ("x", "y") and task.anything == {"a": 1}
    assert locate(f"{user}:Reader").options == {}
    assert locate(f"{user}:Needy").options == {"size": inspect.Parameter.empty}


@pytest.mark.parametrize(
    ("name", "options", "data", "message"),
    [
        ("texte", {}, (), "unknown task 'texte': did you mean 'text'"),
        ("FILE", {}, (), r"mine\.py' names no class: write .*mine\.py:ClassName"),
        ("nowhere.py:Task", {}, (), r"no such file: .*nowhere\.py"),
        ("no_such_module_at_all:Task", {}, (), "no module 'no_such_module_at_all'"),
        ("FILE:Tsk", {}, (), "unknown class in .* 'Tsk': did you mean 'Task'"),
        ("FILE:function", {}, (), "function is not a class"),
        ("FILE:Half", {}, (), r"lacks batch\(\), evaluation\(\)"),
        ("FILE:Timeless", {}, (), "lacks `tokens_per_sample`"),
        ("FILE:Task", {"widht": 1}, (), r"unknown task option 'widht': did you mean 'width'\? \(valid: depth, width\)"),
        ("FILE:Needy", {}, (), r"needs a value for its option 'size': --set task\.size="),
        ("FILE:Task", {}, ("x",), "mine:Task reads no data"),
        ("FILE:Task", {"width": -1}, (), r"could not be made: .*mine\.py, line \d+: RuntimeError: negative width"),
        ("text", {"widht": 1}, (), "unknown task option 'widht': did you mean 'width'"),
        ("text", {"width": 0}, (), "width must be a whole number of at least 1"),
    ],
)
def test_each_mistake_is_one_line(user, name, options, data, message):
    with pytest.raises(UsageError, match=message) as caught:
        resolve(name.replace("FILE", str(user)), options, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\ny = 1 / 0\n", r"broken\.py, line 2: ZeroDivisionError: division by zero"),
        ("x = 1\n\ndef f(:\n", r"broken\.py, line 3: SyntaxError"),
        ("import no_such_package\n", r"broken\.py, line 1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise SystemExit(3)\n", r"broken\.py, line 1: SystemExit: 3"),
        ("x = 1\n", "defines no class"),
    ],
)
def test_a_file_that_does_not_import_names_its_line(tmp_path, content, message):
    path = tmp_path / "broken.py"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        resolve(f"{path}:Task", {})
    assert "\n" not in str(caught.value)


def test_a_module_whose_import_fails_names_its_line(tmp_path, monkeypatch):
    (tmp_path / "fails_inside.py").write_text("\nimport no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"importing fails_inside failed: .*fails_inside\.py, line 2: Module"):
        locate("fails_inside:Task")


def test_fallbacks_of_a_plain_task(user):
    task = resolve(f"{user}:Task", {})
    model = task.build()
    assert roles_of(task, model) is None
    assert flops_per_token(task, model) == 6 * (2 * 3 + 3)
    assert fingerprint(task) == ""


def test_what_a_task_publishes_is_used(user):
    task = resolve(f"{user}:Rich", {})
    assert roles_of(task, task.build()) == {"weight": Role.HEAD, "bias": Role.VECTOR}
    assert flops_per_token(task, task.build()) == 7.0 and fingerprint(task) == "abc"
    ours = resolve("text", {"width": 16})
    torch.manual_seed(0)
    model = ours.build()
    assert roles_of(ours, model) == model.roles()
    assert flops_per_token(ours, model) == model.config.flops_per_token(64)
    assert len(fingerprint(ours)) == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Forgetful", "gives no role to parameter 'bias'"),
        ("Confused", "unknown role 'heads': did you mean 'head'"),
        ("Phantom", "unknown parameter in the task's roles 'wieght': did you mean 'weight'"),
    ],
)
def test_wrong_roles_are_refused(user, name, message):
    task = resolve(f"{user}:{name}", {})
    with pytest.raises(UsageError, match=message):
        roles_of(task, task.build())


def test_doctests():
    assert doctest.testmod(catalog).failed == 0
