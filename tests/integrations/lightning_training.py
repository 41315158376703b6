"""Training by Lightning's Trainer, on one process or by two of them with gloo."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import DataLoader, TensorDataset

import muonlab
from muonlab.train.ranks import pause_at_exit

sys.path.insert(0, str(Path(__file__).parents[1] / "optim"))
from sharded_training import VOCABULARY, Model, error, model, weights

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
EPOCHS, STEPS, BATCH = 2, 4, 8
CLIP = 0.1  # of the norm of gradients that have about 1
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


def batches() -> tuple[Tensor, Tensor]:
    """Inputs and targets of an epoch: (STEPS, BATCH, 6)."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, VOCABULARY, (2, STEPS, BATCH, 6), generator=generator)
    return x, y


def optimizer(module: nn.Module, name: str = "Muon") -> torch.optim.Optimizer:
    return getattr(muonlab, name)(module, lr=0.02, aux_lr=0.005, polar_dtype="float32")


def schedule(opt: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, EPOCHS * STEPS)


class Module(lightning.LightningModule):
    """Shares the work of its optimizer over the ranks, unless it is given itself instead of what the strategy wraps."""

    def __init__(self, name: str = "Muon", *, shared: bool = True) -> None:
        super().__init__()
        self.model, self.optimizer_name, self.shared = model(), name, shared

    def spread(self) -> Any:
        """A strategy for one trainer."""
        return "ddp" if WORLD > 1 else "auto"

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.model(x).flatten(0, 1), y.flatten())

    def configure_optimizers(self) -> dict[str, Any]:
        opt = optimizer(self.trainer.strategy.model if self.shared else self, self.optimizer_name)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": schedule(opt), "interval": "step"}}


class Sharded(Module):
    def spread(self) -> Any:
        return ModelParallelStrategy(data_parallel_size=WORLD, tensor_parallel_size=1)

    def configure_model(self) -> None:
        if not isinstance(self.model, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            for block in self.model.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(self.model, mesh=mesh)


def fit(module: Module, *, epochs: int = EPOCHS, resume: str | None = None, **given: Any) -> lightning.Trainer:
    parts = (half.chunk(WORLD, dim=1)[RANK].flatten(0, 1) for half in batches())
    size = BATCH // WORLD // given.get("accumulate_grad_batches", 1)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=WORLD,
        strategy=module.spread(),
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **given,
    )
    trainer.fit(module, DataLoader(TensorDataset(*parts), batch_size=size), ckpt_path=resume, weights_only=True)
    return trainer


def plain_loop(clip: float | None = None, name: str = "Muon") -> Model:
    """What Lightning should do, on the global batch."""
    module = model()
    opt = optimizer(module, name)
    scheduler = schedule(opt)
    for _ in range(EPOCHS):
        for x, y in zip(*batches(), strict=True):
            opt.zero_grad()
            nn.functional.cross_entropy(module(x).flatten(0, 1), y.flatten()).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            opt.step()
            scheduler.step()
    return module


def is_resumed(module: Module, checkpoint: str, again: Module, half: Module, **given: Any) -> bool:
    """Whether a run that was saved after an epoch and goes on in a new trainer ends at the bits of `module`."""
    fit(half, epochs=1, **given).save_checkpoint(checkpoint)
    fit(again, resume=checkpoint, **given)
    theirs = weights(again)
    return all(torch.equal(weight, theirs[key]) for key, weight in weights(module).items())


def scenarios() -> Iterator[tuple[str, Any]]:
    ways: dict[str, tuple[Callable[[str], Module], dict[str, Any]]] = {
        "ddp": (lambda name: Module(name, shared=False), {"gradient_clip_val": CLIP}),
        "ddp shared": (Module, {"gradient_clip_val": CLIP}),
        "fsdp": (Sharded, {}),
    }
    for way, (made, given) in ways.items():
        for name in ("Muon", "NorMuon"):
            module = made(name)
            trainer = fit(module, **given)
            far = error(module.model, plain_loop(given.get("gradient_clip_val"), name), model())
            folder = [tempfile.mkdtemp(dir=".")]
            distributed.broadcast_object_list(folder)
            same = is_resumed(module, f"{folder[0]}/half.ckpt", made(name), made(name), **given)
            yield f"{way} {name}", {"error": far, "resumed": same, "owners": trainer.optimizers[0]._sharding.has_owners}


if __name__ == "__main__":
    pause_at_exit()
    torch.save(dict(scenarios()), f"rank{RANK}.pt")
    distributed.destroy_process_group()
