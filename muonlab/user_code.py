"""Classes of a user's own, named `path/to/file.py:Class` or `module:Class`: found, imported once, told by content."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from muonlab.errors import UsageError, unknown

__all__ = ["HOW", "UserClass", "blamed", "find", "home", "unknown_name", "where"]

HOW = "path/to/file.py:Class or module:Class"
PREFIX = "muonlab_user_"  # + stem and hash: a file named random.py must not become the module `random`


@dataclass(frozen=True)
class UserClass:
    """A class, and what it takes to find the same one in a child process, or in a later year."""

    cls: type
    name: str  # canonical: "module:Class", or "stem:Class" of a file
    path: Path | None  # of the source of the module that was named; None for one without a file
    is_file: bool  # whether the file was named, not the module

    @property
    def source(self) -> str:
        """The absolute path of a file that was named: with it `find` takes the canonical name."""
        return str(self.path) if self.is_file else ""

    def digest(self, *classes: type) -> str:
        """SHA-256 of the source that was named, and of the files that define `classes` where those are others.

        Files of muonlab do not count: they have versions. Nor does what a file imports.
        """
        homes = [self.path, *(home(cls) for cls in classes if cls.__module__.partition(".")[0] != "muonlab")]
        hashes = [hashlib.sha256(path.read_bytes()) for path in dict.fromkeys(homes) if path]
        if len(hashes) < 2:
            return hashes[0].hexdigest() if hashes else ""
        return hashlib.sha256(b"".join(one.digest() for one in hashes)).hexdigest()


def find(reference: str, source: str = "", *, kind: str) -> UserClass:
    """The class that `reference` names, and that is one; `kind` says in messages what it is for.

    `source` is the file in which a canonical `stem:Class` was found before; it wins over an importable module.

    Raises   UsageError if there is no such file, module or class, or if importing it fails
    """
    place, _, class_name = reference.rpartition(":")
    if not place or not class_name:
        written = reference.strip(":") if reference.strip(":").endswith(".py") else ""
        hint = f"names no class: write {written}:ClassName" if written else f"is not {HOW}"
        raise UsageError(f"{kind} {reference!r} {hint}")
    file = Path(place).expanduser() if place.endswith(".py") else None
    path = Path(source).resolve() if source else file and file.resolve()
    module = _import_file(path) if path else _import_module(place)
    cls = getattr(module, class_name, None)
    if cls is None:
        own = [name for name, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__]
        if not own:
            raise UsageError(f"{path or place} defines no class, so no {class_name!r}")
        raise unknown(f"class in {path or place}", class_name, own)
    if not inspect.isclass(cls):
        raise UsageError(f"{reference}: {class_name} is not a class")
    return UserClass(cls, f"{file.stem if file else place}:{class_name}", path or _path_of(module), path is not None)


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> UsageError:
    """The error for a name that is none of ours, and that is no class of the user's either.

    >>> print(unknown_name("task", "txt", ["text"]))
    unknown task 'txt': did you mean 'text'? (valid: text); one of your own is path/to/file.py:Class or module:Class
    """
    return UsageError(f"{unknown(kind, name, valid)}; one of your own is {HOW}")


@contextmanager
def blamed(what: str, path: Path | None) -> Iterator[None]:
    """What the user's code raises in the block is a mistake of theirs: `what` happened, and where.

    Raises   UsageError, one line that names file and line
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{what}: {where(error, path)}") from error


def where(error: BaseException, path: Path | None) -> str:
    """One line: file and line of the user's code (of `path`, if it got there), what was raised."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).resolve() == path] or frames[-1:]
    place = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
    return f"{place}{type(error).__name__}: {text}"


def home(cls: type) -> Path | None:
    """The file that defines a class, if a file does."""
    return _path_of(sys.modules.get(cls.__module__))


def _path_of(module: ModuleType | None) -> Path | None:
    return Path(module.__file__).resolve() if getattr(module, "__file__", None) else None


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(f"no module {error.name!r}: a class in a file is path/to/file.py:Class") from None
        raise UsageError(f"importing {name} failed: {where(error, None)}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"importing {name} failed: {where(error, None)}") from error


def _import_file(path: Path) -> ModuleType:
    """The module of a user's file, run once per content; the file may import its neighbours."""
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    content = path.read_bytes()
    name = f"{PREFIX}{path.stem}_{hashlib.sha256(bytes(path) + content).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up there
    sys.path.insert(0, str(path.parent))
    try:
        # Not `exec_module`: it trusts a .pyc by mtime in seconds and size, so a quick edit would run the old code.
        exec(compile(content, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise UsageError(f"importing {path.name} failed: {where(error, path)}") from error
    finally:
        if str(path.parent) in sys.path:
            sys.path.remove(str(path.parent))
    return module
