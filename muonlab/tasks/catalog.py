"""Task names -> tasks: ours, and the classes of a user's module or file."""

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from muonlab import user_code
from muonlab.errors import UsageError, unknown
from muonlab.records.spec import Value
from muonlab.roles import Role
from muonlab.tasks.base import PublishesRoles, Task
from muonlab.tasks.external import PREFIX, External

__all__ = [
    "TASKS",
    "TaskInfo",
    "defaults_of",
    "fingerprint",
    "flops_per_token",
    "is_external",
    "is_ours",
    "locate",
    "resolve",
    "roles_of",
]

TASKS = {
    "text": "muonlab.tasks.text:Text",
    "text-synthetic": "muonlab.tasks.synthetic:Synthetic",
    "matrix": "muonlab.tasks.matrix:Matrix",
    "components": "muonlab.tasks.components:Components",
    "digits": "muonlab.tasks.classify:Digits",
    "mnist": "muonlab.tasks.classify:Mnist",
    "fashion-mnist": "muonlab.tasks.classify:FashionMnist",
    "cifar10": "muonlab.tasks.classify:Cifar10",
    "cifar100": "muonlab.tasks.classify:Cifar100",
    "images": "muonlab.tasks.classify:Images",
}
METHODS = ("build", "batch", "loss", "evaluation")


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What a run must remember of a task so that a child process, or a later year, finds the same one.

    >>> locate("text").numerics
    {'task': '1'}
    """

    name: str  # canonical: "text", "text-synthetic", "module:Class", or "stem:Class" of a file
    source: str  # absolute path of the user's file, "" otherwise
    numerics: Mapping[str, Value]  # {"task": version of ours, or SHA-256 of the user's file (not of what it imports)}
    options: Mapping[str, Any] = field(default_factory=dict)  # name -> default; `inspect.Parameter.empty` = required
    later: frozenset[str] = frozenset()  # of ours, added when there were runs: left out of a run at their default


def is_external(task: str) -> bool:
    """Whether runs of it are made by somebody else's trainer."""
    return task.startswith(PREFIX) and len(task) > len(PREFIX)


def is_ours(task: str) -> bool:
    """Whether it needs no rehearsal: it is not the user's code."""
    return task in TASKS or is_external(task)


def defaults_of(task: str) -> Mapping[str, int]:
    """What a study of one of our tasks takes where nothing else is asked for; nothing for most.

    >>> defaults_of("digits")["batch_tokens"], dict(defaults_of("text"))
    (64, {})
    """
    return getattr(_find(task, "").cls, "defaults", {}) if task in TASKS else {}


def locate(task: str, source: str = "") -> TaskInfo:
    """What `task` names: one of TASKS, `module:Class` or `path/to/file.py:Class`.

    `source` is the file in which a canonical `stem:Class` was found before; it wins over an importable module.

    Raises   UsageError if there is no such task, file or class, or if importing the user's code fails
    """
    found = _find(task, source)
    options = {p.name: p.default for p in _parameters(found.cls) if p.name != "data" and p.kind is not p.VAR_KEYWORD}
    version = found.cls.numerics_version if is_ours(found.name) else found.digest()
    later = found.cls.later if is_ours(found.name) and hasattr(found.cls, "later") else frozenset()
    return TaskInfo(name=found.name, source=found.source, numerics={"task": version}, options=options, later=later)


def resolve(task: str, options: Mapping[str, Value], data: tuple[str, ...] = (), source: str = "") -> Task:
    """The task with its options set; names as in `locate`.

    Raises   UsageError as `locate` does, for an option the task does not have or misses, for data it does not read,
             if its constructor raises, and if it lacks a part of the protocol
    """
    found = _find(task, source)
    name, parameters = found.name, _parameters(found.cls)
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
    with user_code.blamed(f"task {name} could not be made", found.path):
        made = found.cls(**arguments)
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


def _find(task: str, source: str) -> user_code.UserClass:
    if task in TASKS:
        module_name, _, class_name = TASKS[task].partition(":")
        return user_code.UserClass(getattr(importlib.import_module(module_name), class_name), task, None, False)
    if is_external(task):
        return user_code.UserClass(External, task, None, False)
    if ":" not in task and not task.endswith(".py"):
        raise user_code.unknown_name("task", task, TASKS)
    found = user_code.find(task, source, kind="task")
    absent = [f"{name}()" for name in METHODS if not callable(getattr(found.cls, name, None))]
    if absent:
        raise UsageError(f"{task} is no task: it lacks {', '.join(absent)} (the protocol is muonlab.tasks.base.Task)")
    return found


def _parameters(cls: type) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_POSITIONAL]
