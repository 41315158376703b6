"""What can be tuned: the rule's hyperparameters, which it declares itself, and the trainer's, declared here."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from muonlab.errors import UsageError, unknown
from muonlab.optim import catalog
from muonlab.optim.rule import Hyperparameter
from muonlab.records import RunSpec
from muonlab.records.spec import SETTABLE, Schedule, Value

__all__ = ["check_names", "coordinates", "settable", "start", "trainer_space"]

# Where a tuning starts: what Wen et al. 2025 (2509.02046) found best at 130M parameters, lr being swept from the
# first. Where they say nothing, the default of the class. eps stays at the default too: theirs (1e-20) goes with bf16.
STARTS = {
    "adamw": {"opt.weight_decay": 0.1, "opt.beta1": 0.9, "opt.beta2": 0.98, "opt.lr": 0.008},
    "muon": {
        "opt.weight_decay": 0.1, "opt.momentum": 0.95, "opt.lr": 0.02,
        "aux.lr_ratio": 0.3, "aux.beta1": 0.8, "aux.beta2": 0.98,
    },
}  # fmt: skip


def start(optimizer: str) -> dict[str, Value]:
    """Every hyperparameter of an optimizer at the value where its tuning starts."""
    published = STARTS.get(optimizer, {})
    return {h.name: published.get(h.name, h.default) for h in catalog.hyperparameters(optimizer)}


def trainer_space(base: RunSpec) -> tuple[Hyperparameter, ...]:
    """The trainer's coordinates around a run, with grids of our choice.

    The batch is swept over a factor of 16 around that of the run and no further: beyond it is a batch study.
    """
    batch, schedule = base.batch_tokens, base.schedule
    fractions = {"low": 0.0, "high": 1.0, "log": False, "unit": "fraction of the run", "source": "ours"}
    space = [
        Hyperparameter("schedule.warmup_fraction", schedule.warmup_fraction, (0.0, 0.05, 0.1, 0.2, 0.4), **fractions),
        Hyperparameter(
            "clip", base.clip, (0.0, 1.0, 2.0), low=0.0, unit="global gradient norm", source="Wen et al. 2025"
        ),
    ]
    if batch % 4 == 0 and base.num_steps >= 16:
        grid = tuple(batch * factor // 4 for factor in (1, 2, 4, 8, 16))
        space.append(
            Hyperparameter("batch_tokens", batch, grid, low=grid[0], high=grid[-1], unit="tokens", source="ours")
        )
    if schedule.kind == "wsd":
        grid = (0.2, 0.4, 0.6, 0.8, 1.0)
        space.append(Hyperparameter("schedule.decay_fraction", schedule.decay_fraction, grid, **fractions))
    return tuple(space)


def coordinates(base: RunSpec, names: Sequence[str], fixed: Collection[str] = ()) -> tuple[Hyperparameter, ...]:
    """The coordinates that `names` ask for, lr first, each starting where `base` stands.

    `all` means every one. A name that this optimizer does not have (opt.momentum for AdamW), or that is `fixed`, is
    left out.
    """
    rule = [replace(h, default=base.hyperparameters.get(h.name, h.default)) for h in catalog.space(base.optimizer)]
    space = {h.name: h for h in (*rule, *trainer_space(base)) if h.grid and h.name not in fixed}
    chosen = list(space) if "all" in names else [name for name in dict.fromkeys(names) if name in space]
    if "opt.lr" not in chosen:
        raise UsageError("--tune must name opt.lr: an optimizer whose learning rate is not tuned can't be compared")
    chosen.sort(key=lambda name: name != "opt.lr")
    return tuple(space[name] for name in chosen)


def check_names(optimizers: Sequence[str], base: RunSpec, names: Sequence[str]) -> None:
    """Raises   UsageError for a coordinate that no optimizer has"""
    valid = {h.name for optimizer in optimizers for h in catalog.space(optimizer)}
    valid |= {h.name for h in trainer_space(base)} | {"all"}
    for name in names:
        if name not in valid:
            raise unknown("coordinate to tune", name, valid)


def settable(optimizer: str) -> frozenset[str]:
    """Every dotted name that a setting may have, except the task's own options."""
    schedule = {f"schedule.{name}" for name in Schedule.__dataclass_fields__}
    return frozenset({*catalog.settable(optimizer), *schedule, *SETTABLE})
