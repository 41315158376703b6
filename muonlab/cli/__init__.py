"""The command line: thin. It reads arguments, calls a study, and shows what came out. Nobody imports it."""

import os
import signal
import sys

from muonlab.cli.app import app
from muonlab.errors import UsageError

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit: 0 ok, 1 some runs failed, 2 usage, 130 interrupted, 143 terminated."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        app(standalone_mode=True)
    except UsageError as error:
        print(f"muonlab: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("muonlab: interrupted; finished runs are kept, the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `muonlab runs list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"muonlab: {error.strerror or error}{where}", file=sys.stderr)
        sys.exit(2)
