"""One run: a RunSpec in, a Record out."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.optim import catalog as optimizers
from muonlab.optim.engine import Engine
from muonlab.optim.parametrize import parametrize
from muonlab.records import Record, RunSpec
from muonlab.records.watch import Watch
from muonlab.tasks import catalog as tasks
from muonlab.tasks.base import Task
from muonlab.train.averaging import Average
from muonlab.train.batches import dealt, micro_samples_of, samples_of, to_device
from muonlab.train.checkpoint import Checkpoints, restore_rng, rng_state, seed_rng
from muonlab.train.coordinates import CoordinateProbe, fixed_look
from muonlab.train.curves import thinned, typical
from muonlab.train.environment import environment, peak_bytes
from muonlab.train.inherit import inherit, keep_weights, weights_in
from muonlab.train.ranks import Alone
from muonlab.train.schedules import lr_factor, progress_at
from muonlab.train.state import AVERAGE, load_tensors, place_for, tensors_of
from muonlab.train.watched import Watched

__all__ = ["Interrupted", "check_observation", "train"]

ALONE, UNWATCHED = Alone(), Watch()
RANK_STRIDE = 104_729  # between the seeds of ranks, so that no two runs share one by chance


class Interrupted(Exception):
    """The run was asked to stop; its last checkpoint, if it writes any, is on disk."""


def train(
    spec: RunSpec,
    *,
    task: Task | None = None,
    watch: Watch = UNWATCHED,
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Alone = ALONE,
    initial: Path | None = None,
    keep: Path | None = None,
) -> Record:
    """Train `spec` to its horizon and evaluate on the whole held-out split.

    The same spec on the same machine and number of threads gives the same record bit for bit, also when it was
    stopped and resumed from a checkpoint; on other `ranks`, which all call this, to float rounding. A non-finite loss
    or gradient norm ends the run as `diverged`, before the update. `watch` adds held-out losses, and what else is
    measured, for curves; nothing else changes. `initial` is the file of the weights that a run with `init_from` starts
    from; in `keep` the weights that the final loss is of are left for others.

    Raises   UsageError for a spec that can't be run; Interrupted when `should_stop` says so
    """
    task = task or tasks.resolve(spec.task, spec.task_options, spec.data, spec.source)
    watch = watch.of(spec)
    run, eval_steps = _Run(spec, task, ranks, watch, initial), watch.steps(spec)
    if checkpoints and (found := checkpoints.newest()) and run.goes_on_from(found.values):
        run.load(found.values, checkpoints.tensors(found, place_for(run.model)))
    saved = time.monotonic()
    while run.step < spec.num_steps and run.diverged_step is None:
        if ranks.largest(should_stop()):
            if checkpoints:
                checkpoints.save(run.step, *run.state())
            raise Interrupted
        run.advance()
        if run.step in eval_steps and run.diverged_step is None:
            run.observe()
        on_step(run.step)
        due = checkpoints and time.monotonic() - saved > checkpoints.seconds and run.step < spec.num_steps
        if ranks.largest(bool(due)):
            checkpoints.save(run.step, *run.state())
            saved = time.monotonic()
    record = run.finish()
    if keep and record.outcome == "ok":
        with run._weights():
            keep_weights(keep, run.model)
    if checkpoints:
        checkpoints.clear()
    return record


@dataclass
class _Run:
    """The state of a run between two steps."""

    spec: RunSpec
    task: Task
    ranks: Alone
    watch: Watch
    initial: Path | None = None
    inherited: dict[str, Any] = field(default_factory=dict)  # what was loaded from there
    step: int = 0
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    eval_curve: list[tuple[int, float]] = field(default_factory=list)
    eval_seconds: float = 0.0
    earlier_seconds: float = 0.0  # wall time before a resume
    num_observations: int = 0  # batches that were passed once more for what a rule observes
    diverged_step: int | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        spec, self.started = self.spec, time.perf_counter()
        self.samples = samples_of(spec, self.task)
        self.micro_samples = micro_samples_of(spec, self.task, self.samples)
        self.device, self.part = self.ranks.device(spec.device), self.ranks.part(self.micro_samples)
        if hasattr(self.task, "check"):
            self.task.check(self.samples)
        seed_rng(spec.seed)
        self.model = self._built()
        cls = optimizers.get(spec.optimizer, spec.optimizer_source, numerics=str(spec.numerics.get("rule", "")))
        roles = tasks.roles_of(self.task, self.model)
        spread = self.ranks.spread(self.task, self.model)
        self.optimizer = optimizers.build(cls, spread, roles, spec.hyperparameters)
        check_observation(self.optimizer, self.task)
        self.peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.average = Average(self.model, spec.averaging) if spec.averaging else None
        self.watched = Watched(self.watch, spec, self.task, self.model, self.optimizer, self.ranks)
        self.noise, self.probes = self.watched.noise, self.watched.probes
        self.spread: nn.Module = spread
        self.forward: nn.Module = torch.compile(spread) if spec.compile else spread
        self.coordinates = self._coordinate_probe()
        if self.ranks.data_rank:  # other dropout than that of the first
            seed_rng(self._own_seed(0))

    def _built(self) -> nn.Module:
        """The model on its device, parametrized; its base is built by random numbers that the run draws again."""
        spec, model = self.spec, self.task.build()
        if spec.is_parametrized:
            before = rng_state(spec.device)
            base = tasks.resolve(spec.task, {**spec.task_options, **spec.base}, spec.data, spec.source).build()
            restore_rng(before)
            roles = tasks.roles_of(self.task, model)
            branches = self.task.branches(model) if hasattr(self.task, "branches") else ()
            parametrize(model, base=base, kind=spec.parametrization, branches=branches, roles=roles)
        if spec.init_from:
            if self.initial is None:
                raise UsageError(f"the run starts from the weights of {spec.init_from[:12]}, which were not given")
            roles = tasks.roles_of(self.task, model)
            self.inherited = inherit(model, weights_in(self.initial), roles, spec.fresh_head)
        return model.to(self.device)

    def advance(self) -> None:
        """One step, or the discovery that the run has diverged."""
        started = time.perf_counter()
        step = self.step + 1
        factor = lr_factor(self.spec.schedule, progress_at(step, self.spec.num_steps))
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        start = (step - 1) * self.samples
        if self.optimizer.wants_observation():
            self._backward(start, self.task.curvature_loss)
            self.optimizer.observe(self.spec.batch_tokens)
            self.optimizer.zero_grad(set_to_none=True)
            self.num_observations += 1
        measured = time.perf_counter()
        small = self._small_gradients(start) if self.noise and self.noise.is_due(step) else None
        aside = time.perf_counter() - measured
        loss = self._backward(start, self.task.loss)
        if small and self.noise:
            measured = time.perf_counter()
            self.probes.note(step, self.noise.measure(small))
            aside += time.perf_counter() - measured
        norm = self.ranks.clip(self.params, self.spec.clip or math.inf)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "loss" if not math.isfinite(loss) else "gradient norm"
            self.diverged_step, self.reason = step, f"{what} not finite at step {step}"
            return
        measured = time.perf_counter()
        self.coordinates.keep(step)
        aside += time.perf_counter() - measured
        self.optimizer.step()
        self.step = step
        if self.average:
            self.average.update(step)
        self.losses.append(loss)
        self.step_seconds.append(time.perf_counter() - started - aside)
        self.probes.note(step, self.coordinates.measure(step))
        if self.watched.layers and self.watched.layers.is_due(step):
            self._note(self.watched.layers.measure)

    def _backward(self, start: int, loss_of: Callable[[nn.Module, Any], Tensor]) -> float:
        parts = self.samples // self.micro_samples
        offset, count = self.part
        total: Tensor | float = 0.0
        for part in range(parts):
            first = start + part * self.micro_samples + offset
            batch = to_device(self.task.batch(self.spec.seed, first, count), self.device)
            self.ranks.sum_gradients(self.spread, now=part == parts - 1)
            with self._autocast():
                loss = loss_of(self.forward, batch) / parts
            loss.backward()
            total = total + loss.detach()
        return self.ranks.mean(total)

    def _coordinate_probe(self) -> CoordinateProbe:
        """Made of the first weights, before a checkpoint is loaded, so that a run that goes on has the same."""
        steps = self.watch.coordinate_steps(self.spec)
        if steps and self.ranks.world_size > 1:
            raise UsageError("the coordinate check is taken in one process: leave --coordinates out under torchrun")
        look = fixed_look(self.task, self.model, self.device, self._autocast)
        return CoordinateProbe(self.model, self.optimizer, look, steps)

    def _small_gradients(self, start: int) -> dict[Tensor, Tensor]:
        """Of the first few samples of a batch, by parameter; whatever this draws, the run draws again."""
        before = rng_state(self.spec.device)
        batch = to_device(self.task.batch(self.spec.seed, start, self.noise.small), self.device)
        with self._autocast():
            loss = self.task.loss(self.forward, batch)
        found = torch.autograd.grad(loss, self.params, allow_unused=True)
        restore_rng(before)
        return {p: gradient for p, gradient in zip(self.params, found, strict=True) if gradient is not None}

    def observe(self) -> None:
        """Add a point to the held-out curve; an evaluation that draws random numbers must not change the run."""
        before = rng_state(self.spec.device)
        self.eval_curve.append((self.step, self.evaluate()))
        if hasattr(self.task, "measures"):
            self.probes.note(self.step, self.task.measures(self.model))
        if self.watched.features:
            self._note(self.watched.features.measure)
        restore_rng(before)

    def _note(self, measure: Callable[[], dict[str, float]]) -> None:
        """What is found in the weights that losses are of."""
        with self._weights(), self._autocast():
            self.probes.note(self.step, measure())

    def _grams(self) -> dict[str, str]:
        if self.watched.features is None:
            return {}
        with self._weights(), self._autocast():
            return self.watched.features.grams()

    def _weights(self) -> Any:
        return self.average.in_place() if self.average and self.step else nullcontext()

    def evaluate(self) -> float:
        """Mean loss over the held-out split, nats per token, of the mean weights where the run asks for them."""
        started = time.perf_counter()
        total, weight = 0.0, 0.0
        self.model.eval()
        with torch.no_grad(), self._autocast(), self._weights():
            for batch, size in dealt(self.task.evaluation(), self.ranks.data_rank, self.ranks.num_data_ranks):
                total += float(self.task.loss(self.forward, to_device(batch, self.device))) * size
                weight += size
        total, weight = self.ranks.total([total, weight])
        self.eval_seconds += time.perf_counter() - started
        if not weight:
            raise UsageError(f"task {self.spec.task} has no held-out data: evaluation() yielded nothing")
        return total / weight

    def _autocast(self) -> Any:
        return torch.autocast(self.spec.device, torch.bfloat16) if self.spec.precision == "bf16" else nullcontext()

    def finish(self) -> Record:
        """Final evaluation and the record."""
        final = self.evaluate() if self.diverged_step is None else math.nan
        if self.diverged_step is None and not math.isfinite(final):
            self.diverged_step, self.reason = self.step, "held-out loss not finite after the last step"
        diverged = self.diverged_step is not None
        tokens = self.step * self.spec.batch_tokens
        passed = tokens + self.num_observations * self.spec.batch_tokens
        steps, losses = thinned(self.losses)
        return Record(
            spec=self.spec,
            outcome="diverged" if diverged else "ok",
            final_loss=None if diverged else final,
            train_steps=steps,
            train_loss=losses,
            eval_steps=tuple(step for step, _ in self.eval_curve),
            eval_loss=tuple(loss for _, loss in self.eval_curve),
            probes=self.probes.series(),
            grams={} if diverged else self._grams(),
            diverged_step=self.diverged_step,
            last_finite_loss=self.losses[-1] if diverged and self.losses else None,
            error=self.reason,
            wall_seconds=self.earlier_seconds + time.perf_counter() - self.started,
            step_seconds=typical(self.step_seconds),
            eval_seconds=self.eval_seconds,
            tokens=tokens,
            flops=tasks.flops_per_token(self.task, self.model) * passed,
            params=_params_by_role(self.optimizer),
            inherited=self.inherited,
            peak_bytes=peak_bytes(self.spec.device),
            environment=environment(self.spec.device, self.ranks.world_size, self.ranks.description),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Everything that the run goes on from: values, and tensors by name; a collective."""
        tensors, groups = tensors_of(self.model, self.optimizer)
        if self.average:
            tensors |= {f"{AVERAGE}/{name}": mean for name, mean in self.average.means.items()}
        generators = self.ranks.gathered((self.ranks.data_rank, rng_state(self.spec.device)))
        return {
            "key": self.spec.key,
            "step": self.step,
            "param_groups": groups,
            "rng": [state for _, state in sorted(dict(generators).items())],  # by data rank
            "curves": [self.losses, self.step_seconds, [list(point) for point in self.eval_curve]],
            "probes": self.probes.state(),
            **self.watched.asked,
            "coordinates": sorted(self.watch.coordinates),
            "seconds": [self.earlier_seconds + time.perf_counter() - self.started, self.eval_seconds],
            "num_observations": self.num_observations,
        }, tensors

    def goes_on_from(self, values: dict[str, Any]) -> bool:
        """Not where a checkpoint lies behind something that is asked for and was not measured.

        Raises   UsageError if it is one of another run
        """
        if values["key"] != self.spec.key:
            raise UsageError("the checkpoint belongs to another run: remove it or choose another --artifacts folder")
        taken = {step for step, _ in values["curves"][2]}
        if any(value != values.get(name, 0) for name, value in self.watched.asked.items()):
            return False
        missing = self.watch.coordinates - set(values.get("coordinates", ())) | (self.watch.steps(self.spec) - taken)
        return all(step > values["step"] for step in missing)

    def load(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`; a collective."""
        if self.average:
            self.average.means = {name: tensors.pop(f"{AVERAGE}/{name}") for name in self.average.means}
        load_tensors(self.model, self.optimizer, tensors, values["param_groups"])
        self.step = values["step"]
        self.losses, self.step_seconds = list(values["curves"][0]), list(values["curves"][1])
        self.eval_curve = [(int(step), loss) for step, loss in values["curves"][2]]
        self.probes.load(values.get("probes", {}))
        self.earlier_seconds, self.eval_seconds = values["seconds"]
        self.num_observations = values["num_observations"]
        if len(values["rng"]) == self.ranks.num_data_ranks or not self.ranks.data_rank:
            restore_rng(values["rng"][self.ranks.data_rank])
        else:  # nobody has drawn from this one yet
            seed_rng(self._own_seed(self.step))

    def _own_seed(self, step: int) -> int:
        """For the generators of this data rank from a step on."""
        return self.spec.seed + RANK_STRIDE * (self.ranks.data_rank + step * self.ranks.num_data_ranks)


def check_observation(optimizer: Engine | type[Engine], task: Task) -> None:
    """Raises   UsageError if the optimizer observes curvature and the task has no `curvature_loss`"""
    if optimizer.rule.observes and not hasattr(task, "curvature_loss"):
        raise UsageError(
            f"{optimizer.rule.name} observes curvature, so the task needs a method curvature_loss(model, batch): "
            "the mean loss against labels drawn from the model's own predictions"
        )


def _params_by_role(optimizer: Engine) -> dict[str, int]:
    """Counts by role, as the optimizer's routing saw them: each parameter once, tied or not."""
    counts: dict[str, int] = {}
    for group in optimizer.param_groups:
        counts[group["role"]] = counts.get(group["role"], 0) + sum(p.numel() for p in group["params"])
    return counts
