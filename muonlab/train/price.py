"""What a run will take, from a moment of it: for a study that has not been started."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from muonlab.optim import catalog as optimizers
from muonlab.records import RunSpec
from muonlab.tasks import catalog as tasks
from muonlab.tasks.base import Task
from muonlab.train.batches import to_device
from muonlab.train.feature_probes import FeatureProbe

__all__ = ["Prices", "estimate_seconds", "look_seconds", "timed"]

TRIAL_TOKENS = 2048  # of the batch that is timed; the rest of a batch is taken to cost in proportion
MIN_REPEATS, TRIAL_SECONDS = 2, 0.2


class Prices(NamedTuple):
    step_seconds: float
    evaluation_seconds: float


def estimate_seconds(spec: RunSpec) -> float:
    """Seconds of one run with one thread: steps and final evaluation."""
    step, evaluation = timed(spec)
    return spec.num_steps * step + evaluation


def timed(spec: RunSpec) -> Prices:
    """One step and one evaluation with one thread, from a small batch and one optimizer step.

    Eager and in fp32, whatever the spec says. A few seconds at most, unless one sample takes longer.
    """
    with _one_thread():
        task, model = _built(spec)
        cls = optimizers.get(spec.optimizer, spec.optimizer_source)
        optimizer = optimizers.build(cls, model, tasks.roles_of(task, model), spec.hyperparameters)
        samples = max(1, min(spec.batch_tokens, TRIAL_TOKENS) // task.tokens_per_sample)
        batch = to_device(task.batch(spec.seed, 0, samples), spec.device)

        def backward() -> None:
            optimizer.zero_grad()
            task.loss(model, batch).backward()

        gradient = _seconds(backward)
        optimizer.observe(num_samples=spec.batch_tokens)
        step = _seconds(optimizer.step)
        share = spec.batch_tokens / (samples * task.tokens_per_sample)
        return Prices(gradient * share + step, _evaluation_seconds(task, model, spec))


def look_seconds(spec: RunSpec) -> float:
    """One look at the layers and at corrupted inputs of a model that has learned nothing, with one thread."""
    with _one_thread():
        probe = FeatureProbe(*_built(spec))
        return min(_seconds(probe.measure) for _ in range(MIN_REPEATS))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _built(spec: RunSpec) -> tuple[Task, torch.nn.Module]:
    task = tasks.resolve(spec.task, spec.task_options, spec.data, spec.source)
    return task, task.build().to(spec.device)


def _evaluation_seconds(task: Task, model: torch.nn.Module, spec: RunSpec) -> float:
    """From the first held-out batch, in proportion to the weights of all."""
    sizes: list[float] = []
    first = 0.0
    for batch, size in task.evaluation():
        if not sizes:
            moved = to_device(batch, spec.device)
            with torch.no_grad():
                first = _seconds(lambda: task.loss(model, moved))  # noqa: B023
        sizes.append(size)
    return first * sum(sizes) / sizes[0] if sizes and sizes[0] else 0.0


def _seconds(action: Callable[[], object]) -> float:
    """The fastest of a few calls, the first being a warm-up unless it alone takes long."""
    times: list[float] = []
    while len(times) < MIN_REPEATS or sum(times) < TRIAL_SECONDS:
        started = time.perf_counter()
        action()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        if times[-1] > TRIAL_SECONDS:
            break
    return min(times)
