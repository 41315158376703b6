"""The command line: thin. It reads arguments, calls a study, and shows what came out. Nobody imports it."""

import logging
import os
import signal
import sys
from typing import Any, NoReturn

from muonlab.errors import UsageError

__all__ = ["main"]

STOPPED = {
    128 + signal.SIGINT: "interrupted",
    128 + signal.SIGTERM: "terminated",
}


def main() -> None:
    """Run the command line and exit: 0 ok, 1 some runs failed, 2 usage, 130 interrupted, 143 terminated."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        try:
            _app()()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # what is left is to say how it ended
            sys.stdout.flush()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer makes exit code 1 of it
            _end_of_pipe()
        if end.code in STOPPED:
            _say(f"{STOPPED[end.code]}; what the store holds is kept, and the same command goes on from there")
        raise
    except UsageError as error:
        _say(str(error))
        sys.exit(2)
    except BrokenPipeError:
        _end_of_pipe()
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _say(f"{error.strerror or error}{where}")
        sys.exit(2)


def _app() -> Any:
    try:
        from muonlab.cli.app import app
    except ModuleNotFoundError as error:
        raise UsageError(f"the laboratory needs the package {error.name}: pip install 'muonlab[lab]'") from None
    return app


def _stop(number: int, frame: object) -> NoReturn:
    logging.disable()  # of the exception that arrives in their midst; they pass it on
    raise SystemExit(128 + number)


def _end_of_pipe() -> NoReturn:
    """Nobody reads any more: `muonlab runs list | head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(128 + signal.SIGPIPE)


def _say(message: str) -> None:
    if os.environ.get("RANK", "0") != "0":  # one of several under torchrun: the first says what concerns all
        return
    print("muonlab:", " ".join(message.split()), file=sys.stderr)
