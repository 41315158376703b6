"""Task names -> tasks: ours, and the classes of a user's module or file."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from muonlab.errors import UsageError, unknown
from muonlab.records.spec import Value
from muonlab.roles import Role
from muonlab.tasks.base import PublishesRoles, Task

__all__ = ["TASKS", "TaskInfo", "fingerprint", "flops_per_token", "locate", "resolve", "roles_of"]

TASKS = {"text": "muonlab.tasks.text:Text"}
METHODS = ("build", "batch", "loss", "evaluation")
USER_MODULE = "muonlab_user_task_"  # + stem: a file named random.py must not become the module `random`


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What a run must remember of a task so that a child process, or a later year, finds the same one.

    >>> locate("text").numerics
    {'task': '1'}
    """

    name: str  # canonical: "text", "module:Class", or "stem:Class" of a file
    source: str  # absolute path of the user's file, "" otherwise
    numerics: Mapping[str, Value]  # {"task": version of ours, or SHA-256 of the user's file (not of what it imports)}
    options: Mapping[str, Any] = field(default_factory=dict)  # name -> default; `inspect.Parameter.empty` = required


def locate(task: str, source: str = "") -> TaskInfo:
    """What `task` names: "text", `module:Class` or `path/to/file.py:Class`.

    `source` is the file in which a canonical `stem:Class` was found before; it wins over an importable module.

    Raises   UsageError if there is no such task, file or class, or if importing the user's code fails
    """
    cls, name, path = _find(task, source)
    options = {p.name: p.default for p in _parameters(cls) if p.name != "data" and p.kind is not p.VAR_KEYWORD}
    if name in TASKS:
        return TaskInfo(name=name, source="", numerics={"task": cls.numerics_version}, options=options)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path else ""
    from_file = path is not None and (bool(source) or _file_of(task) is not None)
    return TaskInfo(name=name, source=str(path) if from_file else "", numerics={"task": digest}, options=options)


def resolve(task: str, options: Mapping[str, Value], data: tuple[str, ...] = (), source: str = "") -> Task:
    """The task with its options set; names as in `locate`.

    Raises   UsageError as `locate` does, for an option the task does not have or misses, for data it does not read,
             if its constructor raises, and if it lacks a part of the protocol
    """
    cls, name, path = _find(task, source)
    parameters = _parameters(cls)
    valid = {p.name for p in parameters if p.name != "data" and p.kind is not p.VAR_KEYWORD}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for option in options:
            if option not in valid:
                raise unknown("task option", option, valid) if valid else UsageError(f"task {name} has no options")
    missing = [p.name for p in parameters if p.name in valid - set(options) and p.default is p.empty]
    if missing:
        raise UsageError(f"task {name} needs a value for its option {missing[0]!r}: --set task.{missing[0]}=...")
    arguments = dict(options)
    if "data" in {p.name for p in parameters}:
        arguments["data"] = tuple(data)
    elif data:
        raise UsageError(f"task {name} reads no data: its constructor has no argument `data`")
    try:
        made = cls(**arguments)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"task {name} could not be made: {_where(error, path)}") from error
    if not isinstance(getattr(made, "tokens_per_sample", None), int) or made.tokens_per_sample < 1:
        raise UsageError(f"task {name} lacks `tokens_per_sample`, a whole number of at least 1 (1 if it has no tokens)")
    return made


def roles_of(task: Task, model: nn.Module) -> Mapping[str, Role] | None:
    """Parameter name -> role as the task publishes it; None if it does not: routing finds it out.

    Roles may be their names ("hidden"), so that a task need not import muonlab.

    Raises   UsageError if a parameter has no role, or a role no parameter
    """
    if not isinstance(task, PublishesRoles):
        return None
    published = dict(task.roles(model))
    names = {name for name, _ in model.named_parameters()}
    for name in sorted(names - published.keys()):
        raise UsageError(f"{type(task).__name__}.roles gives no role to parameter {name!r}")
    for name in sorted(published.keys() - names):
        raise unknown("parameter in the task's roles", name, names)
    try:
        return {name: Role(role) for name, role in published.items()}
    except ValueError:
        wrong = next(role for role in published.values() if role not in list(Role))
        raise unknown("role", wrong, list(Role)) from None


def flops_per_token(task: Task, model: nn.Module) -> float:
    """Forward and backward, as the task counts them; 6 x parameters if it does not.

    The fallback is right for matrices that each token passes once: it counts embedding tables too much and
    convolutions too little.
    """
    if hasattr(task, "flops_per_token"):
        return float(task.flops_per_token(model))
    return 6.0 * sum(parameter.numel() for parameter in model.parameters())


def fingerprint(task: Task) -> str:
    """Hash of the task's data; "" if it gives none: its options and source identify the data then."""
    return str(task.fingerprint()) if hasattr(task, "fingerprint") else ""


def _find(task: str, source: str) -> tuple[type, str, Path | None]:
    """(class, canonical name, file of its source)."""
    if task in TASKS:
        module_name, _, class_name = TASKS[task].partition(":")
        return getattr(importlib.import_module(module_name), class_name), task, None
    if ":" not in task:
        if task.endswith(".py"):
            raise UsageError(f"task {task!r} names no class: write {task}:ClassName")
        error = unknown("task", task, TASKS)
        raise UsageError(f"{error}; a task of your own is path/to/file.py:Class or module:Class")
    place, _, class_name = task.rpartition(":")
    path = Path(source) if source else _file_of(task)
    module = _import_file(path) if path else _import_module(place)
    cls = getattr(module, class_name, None)
    if cls is None:
        classes = [name for name, value in vars(module).items() if inspect.isclass(value)]
        own = [name for name in classes if vars(module)[name].__module__ == module.__name__]
        if not own:
            raise UsageError(f"{path or place} defines no class, so no {class_name!r}")
        raise unknown(f"class in {path or place}", class_name, own)
    if not inspect.isclass(cls):
        raise UsageError(f"{task}: {class_name} is not a class")
    absent = [f"{name}()" for name in METHODS if not callable(getattr(cls, name, None))]
    if absent:
        raise UsageError(f"{task} is no task: it lacks {', '.join(absent)} (the protocol is muonlab.tasks.base.Task)")
    found = path or (Path(module.__file__) if getattr(module, "__file__", None) else None)
    return cls, f"{path.stem if path else place}:{class_name}", found.resolve() if found else None


def _file_of(task: str) -> Path | None:
    """The file in `path/to/file.py:Class`; None for `module:Class`."""
    place = task.rpartition(":")[0]
    return Path(place).expanduser() if place.endswith(".py") else None


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(f"no module {error.name!r}: a task in a file is path/to/file.py:Class") from None
        raise UsageError(f"importing {name} failed: {_where(error, None)}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"importing {name} failed: {_where(error, None)}") from error


def _import_file(path: Path) -> ModuleType:
    """The module of a user's file, run once per content; the file may import its neighbours."""
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    name, digest = USER_MODULE + path.stem, hashlib.sha256(path.read_bytes()).hexdigest()
    known = sys.modules.get(name)
    if known is not None and vars(known).get("__muonlab_file__") == (str(path), digest):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up there
    sys.path.insert(0, str(path.parent))
    try:
        # Not `exec_module`: it trusts a .pyc by mtime in seconds and size, so a quick edit would run the old code.
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise UsageError(f"importing {path.name} failed: {_where(error, path)}") from error
    finally:
        if str(path.parent) in sys.path:
            sys.path.remove(str(path.parent))
    module.__muonlab_file__ = (str(path), digest)
    return module


def _parameters(cls: type) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_POSITIONAL]


def _where(error: BaseException, path: Path | None) -> str:
    """One line: file and line of the user's code, what was raised."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if path is not None and frame.filename == str(path)] or frames[-1:]
    place = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
    return f"{place}{type(error).__name__}: {text}"
