"""The task `external:NAME`: trained elsewhere. Here it has a name and options, and neither model nor data."""

from typing import Any, ClassVar, NoReturn

from muonlab.errors import UsageError

__all__ = ["PREFIX", "External"]

PREFIX = "external:"


class External:
    """What somebody else's trainer runs: `muonlab ask` says which runs, `muonlab tell` takes their results.

    `params` is the number of parameters that are neither embedding nor head, which a ladder counts tokens by. Every
    other option only travels with the runs, and tells them apart.
    """

    numerics_version: ClassVar[str] = "1"

    def __init__(self, params: int | None = None, tokens_per_sample: int = 1, **options: Any) -> None:
        for name, value in (("params", params), ("tokens_per_sample", tokens_per_sample)):
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"task.{name} must be a whole number of at least 1, got {value!r}")
        self.params, self.tokens_per_sample = params, int(tokens_per_sample)

    def _elsewhere(self, *_: Any) -> NoReturn:
        raise UsageError("an external task is trained elsewhere: `muonlab ask STUDY.toml` says which runs it wants")

    build = batch = loss = evaluation = _elsewhere
