"""Classes of a user's own: found by file or module, imported once per content, and every mistake one line."""

import hashlib
import os
import pickle
import sys
from pathlib import Path

import pytest

from muonlab import user_code
from muonlab.errors import UsageError
from muonlab.user_code import blamed, find, home, where

MINE = """
from dataclasses import dataclass

@dataclass
class Point:
    x: int

class Mine:
    value = 1

function = len
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def test_a_file(mine):
    found = find(f"{mine}:Mine", kind="task")
    assert (found.cls.value, found.name, found.path, found.source) == (1, "mine:Mine", mine, str(mine))
    assert found.digest() == found.digest(found.cls) == digest(mine)
    again = find(found.name, found.source, kind="task")
    assert again == found and again.cls is found.cls


def test_a_path_may_be_relative_begin_at_home_or_be_a_link(mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    monkeypatch.setenv("HOME", str(mine.parent))
    (mine.parent / "link.py").symlink_to(mine)
    for reference in ("mine.py:Mine", "./mine.py:Mine", "~/mine.py:Mine", "link.py:Mine"):
        found = find(reference, kind="task")
        assert found.source == str(mine)
        assert found.name == ("link:Mine" if "link" in reference else "mine:Mine")
        assert find(found.name, found.source, kind="task") == found


def test_a_module_has_no_source_and_is_known_by_the_file_that_it_lies_in(mine, monkeypatch):
    path = mine.rename(mine.with_name("importable_code.py"))
    monkeypatch.syspath_prepend(path.parent)
    found = find("importable_code:Mine", kind="task")
    assert (found.name, found.source, found.path) == ("importable_code:Mine", "", path)
    assert found.digest() == digest(path) and found.cls is sys.modules["importable_code"].Mine
    file = find(f"{path}:Mine", kind="task")
    assert file.name == found.name and file.cls is not found.cls
    assert find(found.name, str(path), kind="task").cls is file.cls  # the source wins over the module


def test_a_file_runs_once_per_content_and_its_classes_pickle(mine):
    mine.write_text(MINE + "import sys\nsys.times_run = getattr(sys, 'times_run', 0) + 1\n")
    try:
        first, second = (find(f"{mine}:Point", kind="task").cls for _ in range(2))
        assert first is second and sys.times_run == 1
        assert pickle.loads(pickle.dumps(first(3))) == first(3)
        mine.write_text(mine.read_text().replace("value = 1", "value = 2"))
        edited = find(f"{mine}:Mine", kind="task")
        assert edited.cls.value == 2 and sys.times_run == 2
    finally:
        del sys.times_run
    assert pickle.loads(pickle.dumps(first(3))) == first(3)  # of before the edit


def test_an_edit_that_keeps_size_and_time_is_seen(mine):
    before, times = find(f"{mine}:Mine", kind="task"), mine.stat()
    mine.write_text(MINE.replace("value = 1", "value = 2"))
    os.utime(mine, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = find(f"{mine}:Mine", kind="task")
    assert (before.cls.value, after.cls.value) == (1, 2) and before.digest() == after.digest() == digest(mine)


def test_files_of_one_name_stay_apart(mine, tmp_path):
    other = tmp_path / "elsewhere" / "mine.py"
    other.parent.mkdir()
    other.write_text(MINE.replace("value = 1", "value = 7"))
    one, two = (find(f"{path}:Mine", kind="task") for path in (mine, other))
    assert one.name == two.name and (one.cls.value, two.cls.value) == (1, 7)
    assert find(f"{mine}:Mine", kind="task").cls is one.cls and pickle.loads(pickle.dumps(one.cls)) is one.cls


def test_a_file_may_import_its_neighbours_and_shadows_nothing(tmp_path):
    import random

    (tmp_path / "neighbour_of_code.py").write_text("class Base:\n    value = 11\n")
    path = tmp_path / "random.py"
    path.write_text("from neighbour_of_code import Base\n\nclass Mine(Base):\n    pass\n")
    before = list(sys.path)
    assert find(f"{path}:Mine", kind="task").cls.value == 11
    assert sys.path == before and sys.modules["random"] is random


def test_what_another_file_defines_counts_where_it_is_asked_for(tmp_path):
    defines = tmp_path / "defines_code.py"
    defines.write_text("class Mine:\n    pass\n")
    path = tmp_path / "passes_on.py"
    path.write_text("from defines_code import Mine\nfrom muonlab.roles import Role\n")
    found = find(f"{path}:Mine", kind="task")
    assert home(found.cls) == defines and found.digest() == digest(path)
    both = found.digest(found.cls, found.cls)
    assert both not in (digest(path), digest(defines))
    defines.write_text("class Mine:\n    changed = True\n")
    assert found.digest(found.cls) != both
    ours = find(f"{path}:Role", kind="task")
    assert ours.digest(ours.cls) == digest(path)  # what is ours has versions


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("FILE", r"thing '.*mine\.py' names no class: write .*mine\.py:ClassName"),
        ("FILE:", r"names no class: write .*mine\.py:ClassName"),
        (":Mine", "thing ':Mine' is not path/to/file.py:Class or module:Class"),
        ("", "thing '' is not path/to/file.py:Class or module:Class"),
        ("FOLDER/nowhere.py:Mine", r"no such file: .*nowhere\.py"),
        ("FOLDER.py:Mine", r"no such file: "),
        (
            "no_such_module_at_all:Mine",
            r"no module 'no_such_module_at_all': a class in a file is path/to/file\.py:Class",
        ),
        ("os.nothing:Mine", r"no module 'os\.nothing'"),
        ("FILE:Min", r"unknown class in .*mine\.py 'Min': did you mean 'Mine'\? \(valid: Mine, Point\)"),
        ("FILE:function", "function is not a class"),
    ],
)
def test_each_mistake_is_one_line(mine, reference, message):
    with pytest.raises(UsageError, match=message) as error:
        find(reference.replace("FILE", str(mine)).replace("FOLDER", str(mine.parent)), kind="thing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\ny = 1 / 0\n", r"broken\.py, line 2: ZeroDivisionError: division by zero"),
        ("x = 1\n\ndef f(:\n", r"broken\.py, line 3: SyntaxError: invalid syntax"),
        ("import no_such_package\n", r"broken\.py, line 1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise SystemExit(3)\n", r"broken\.py, line 1: SystemExit: 3"),
        ("raise ValueError('two\\nlines')\n", r"broken\.py, line 1: ValueError: two lines"),
        ("x = 1\n", r"broken\.py defines no class, so no 'Mine'"),
        (b"x = '\xff'\n", "SyntaxError"),
        ("x = 1\0\n", "null bytes"),
    ],
)
def test_a_file_that_does_not_import_is_one_line_and_leaves_nothing(tmp_path, content, message):
    path = tmp_path / "broken.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = list(sys.path)
    with pytest.raises(UsageError, match=message) as error:
        find(f"{path}:Mine", kind="task")
    assert "\n" not in str(error.value) and sys.path == before
    left = [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(path)]
    assert bool(left) == (content == "x = 1\n")
    path.write_text(MINE)
    assert find(f"{path}:Mine", kind="task").cls.value == 1  # mended


def test_a_module_that_does_not_import_names_its_line(tmp_path, monkeypatch):
    (tmp_path / "fails_within.py").write_text("\nimport no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"importing fails_within failed: .*fails_within\.py, line 2: Module"):
        find("fails_within:Mine", kind="task")


def test_what_users_code_raises_later_is_blamed_on_its_line(mine):
    mine.write_text("import json\nclass Mine:\n    def __init__(self, text):\n        self.read = json.loads(text)\n")
    found = find(f"{mine}:Mine", kind="task")
    words = r"^Mine failed: .*mine\.py, line 4: JSONDecodeError: Expecting value"
    with pytest.raises(UsageError, match=words), blamed("Mine failed", found.path):
        found.cls("")
    with pytest.raises(UsageError, match=r"^as it is$"), blamed("Mine failed", found.path):
        raise UsageError("as it is")
    with pytest.raises(KeyboardInterrupt), blamed("Mine failed", found.path):
        raise KeyboardInterrupt
    with blamed("Mine failed", found.path):
        assert found.cls("3").read == 3


def test_where_without_a_trace_or_a_message():
    assert where(ValueError(), None) == "ValueError: no message"


def test_the_name_of_an_imported_file_is_no_module_of_anybody(mine):
    assert find(f"{mine}:Mine", kind="task").cls.__module__.startswith(user_code.PREFIX + "mine_")
