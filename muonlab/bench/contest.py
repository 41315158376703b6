"""One parameter set: every contender is warmed up and looked at alone, then all are timed together."""

import io
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from muonlab.bench.accuracy import SPECTRA, orthogonality_error, problems
from muonlab.bench.limits import Work, flop_overhead, model_flops
from muonlab.bench.memory import extra_bytes, state_bytes
from muonlab.bench.peers import Contender
from muonlab.bench.sets import ParameterSet, Shape
from muonlab.bench.timing import Rounds, Stepper, forward_backward, interleave, num_repeats, ratios, spread

__all__ = ["Conditions", "Contest"]

WARM_UPS = 3  # steps before the first that counts: compilation, state, caches
TOO_SLOW = 5.0  # seconds of arithmetic in a step, or times that of the reference if it takes more than one
MODEL = "forward and backward pass"


@dataclass(frozen=True)
class Conditions:
    """What is the same for all sets and contenders."""

    num_rounds: int = 15
    batch_tokens: int = 2048
    num_ranks: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Entry:
    """A contender that is ready to be timed."""

    contender: Contender
    stepper: Stepper
    repeats: int
    facts: dict[str, Any]

    def seconds(self) -> float:
        """A step's, in one round."""
        with _guest():
            return self.stepper.seconds(self.repeats)


@contextmanager
def _guest() -> Iterator[None]:
    """Around a contender's code: it may neither speak nor change how fast the others are."""
    precision, num_threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)


class TooSlow(Exception):
    """Not worth anybody's waiting."""


class Contest:
    """The tensors of a parameter set, which all contenders step in turn.

    The reference is the first that enters. `peaks` are the flops per second that the machine reaches in each dtype.
    """

    def __init__(self, parameters: ParameterSet, conditions: Conditions, peaks: dict[str, float]) -> None:
        self.parameters, self.conditions, self.peaks = parameters, conditions, peaks
        self.entries: list[Entry] = []
        generator, device = torch.Generator().manual_seed(0), conditions.device
        self.gradients = [torch.randn(shape, generator=generator).to(device) for shape in parameters.shapes]
        self.buffers = [torch.empty_like(gradient) for gradient in self.gradients]
        self.weights = [nn.Parameter(0.02 * gradient.flip(0)) for gradient in self.gradients]
        self.problems = problems(parameters.shapes, device) if parameters.rule == "muon" else {}
        if "torch._dynamo" in sys.modules:  # graphs of other sets count against the limit on recompilations
            torch.compiler.reset()

    def enter(self, contender: Contender) -> None:
        """Build, warm up, and measure all but the time.

        Raises   TooSlow if that would take minutes; whatever the contender raises
        """
        expected = self._limit(self._works(contender))
        if self.entries and expected > TOO_SLOW * max(1.0, self._limit(self._works(self.entries[0].contender))):
            raise TooSlow(f"its products alone take {expected:.0f} s per step on this machine")
        with _guest():
            self.entries.append(self._entry(contender))

    def _entry(self, contender: Contender) -> Entry:
        errors = {name: orthogonality_error(contender.build, found) for name, found in self.problems.items()}
        optimizer, device = contender.build(self.weights), self.conditions.device
        stepper = Stepper(optimizer, self.weights, self.gradients, self.buffers, device)
        warm = [stepper.seconds() for _ in range(WARM_UPS)]
        stepper.refresh()
        facts = {
            "orthogonality_error": errors.get(SPECTRA[0]),
            "orthogonality_error_loguniform": errors.get(SPECTRA[1]),
            "peak_bytes": extra_bytes(optimizer.step, device),
            "state_bytes_per_weight": state_bytes(optimizer) / self.parameters.num_parameters,
        }
        return Entry(contender, stepper, num_repeats(min(warm)), facts)

    def rows(self) -> list[dict[str, Any]]:
        """Time all that entered, interleaved; a row for each, the fastest first."""
        timers: dict[int | str, Callable[[], float]] = {i: entry.seconds for i, entry in enumerate(self.entries)}
        if self.parameters.is_matrices:
            timers[MODEL] = forward_backward(
                self.parameters.shapes, self.conditions.batch_tokens, self.conditions.device
            )
        rounds = interleave(timers, self.conditions.num_rounds)
        rows = [self._row(entry, rounds[i], rounds[0], rounds.get(MODEL)) for i, entry in enumerate(self.entries)]
        return sorted(rows, key=lambda row: row["ratio_to_torch"])

    def _row(self, entry: Entry, mine: Rounds, reference: Rounds, model: Rounds | None) -> dict[str, Any]:
        contender, times = entry.contender, self._times(mine, reference, model)
        return {
            "set": self.parameters.name,
            "num_matrices": len(self.parameters.shapes),
            "num_parameters": self.parameters.num_parameters,
            "optimizer": contender.optimizer,
            "config": contender.config,
            **times,
            **entry.facts,
            **self._arithmetic(contender, times["median_seconds"]),
        }

    def _times(self, mine: Rounds, reference: Rounds, model: Rounds | None) -> dict[str, Any]:
        seconds = spread([value for value in mine if value is not None])
        ratio = spread(ratios(mine, reference))
        share = spread(ratios(mine, model)) if model else None
        return {
            "median_seconds": seconds.median,
            "seconds_low": seconds.low,
            "seconds_high": seconds.high,
            "num_rounds": seconds.num_rounds,
            "ratio_to_torch": ratio.median,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "share_of_model": share and share.median,
            "share_low": share and share.low,
            "share_high": share and share.high,
        }

    def _arithmetic(self, contender: Contender, seconds: float) -> dict[str, Any]:
        """What the polar factors take in flops, in time at best, and beside the flops of the model."""
        works, conditions = self._works(contender), self.conditions
        if not works:
            return dict.fromkeys(("algorithm", "limit_seconds", "limit_multiple", "flop_share", "flop_overhead"))
        limit = self._limit(works, floor=self.peaks["float32"])  # a processor that lacks a dtype converts to float32
        flops = sum(work.flops(shape) for work, shape in works)
        overheads = [
            flop_overhead(work.num_steps, min(shape), conditions.batch_tokens, conditions.num_ranks)
            for work, shape in works
            if work.method == "newton_schulz"
        ]
        return {
            "algorithm": " / ".join(dict.fromkeys(str(work) for work, _ in works)),
            "limit_seconds": limit,
            "limit_multiple": seconds / limit,
            "flop_share": flops * conditions.num_ranks / model_flops(self.parameters.shapes, conditions.batch_tokens),
            "flop_overhead": max(overheads) if len(overheads) == len(works) else None,
        }

    def _works(self, contender: Contender) -> list[tuple[Work, Shape]]:
        """What it computes for each matrix; nothing where that is unknown for one of them."""
        works = [(contender.work_on(shape, self.conditions.device), shape) for shape in self.parameters.shapes]
        known = [(work, shape) for work, shape in works if work]
        return known if len(known) == len(works) else []

    def _limit(self, works: list[tuple[Work, Shape]], floor: float = 0.0) -> float:
        return sum(work.flops(shape) / max(self.peaks[work.dtype], floor) for work, shape in works)
