"""Training under accelerate, on one process or by two of them with gloo."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import distributed, nn

from muonlab.train.ranks import pause_at_exit

sys.path.insert(0, str(Path(__file__).parents[1] / "optim"))
from sharded_training import batch, error, model, optimizer, weights
from sharded_training import train as train_plainly

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
STEPS = 4


def prepared(accelerator: Accelerator, name: str, *, shared: bool = False) -> tuple[nn.Module, Any]:
    """Model and optimizer; `shared` prepares the model first, so that the optimizer is given the DDP module."""
    module = model()
    if shared:
        module = accelerator.prepare(module)
        return module, accelerator.prepare(optimizer(name, module))
    return accelerator.prepare(module, optimizer(name, module))


def train(accelerator: Accelerator, module: nn.Module, opt: Any, steps: range) -> None:
    for step in steps:
        x, y = (half.chunk(WORLD)[RANK] for half in batch(step))
        opt.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(module(x).flatten(0, 1), y.flatten()))
        opt.step()


def interrupted(accelerator: Accelerator, name: str, folder: str, *, shared: bool) -> tuple[nn.Module, bool, bool]:
    """The model after four steps; whether two, a checkpoint and two more end there; whether matrices have owners."""
    module, opt = prepared(accelerator, name, shared=shared)
    train(accelerator, module, opt, range(2))
    accelerator.save_state(folder)
    train(accelerator, module, opt, range(2, STEPS))
    accelerator._models.clear()
    accelerator._optimizers.clear()
    again, resumed = prepared(accelerator, name, shared=shared)
    accelerator.load_state(folder)
    train(accelerator, again, resumed, range(2, STEPS))
    accelerator._models.clear()
    accelerator._optimizers.clear()
    theirs = weights(again)
    same = all(torch.equal(weight, theirs[key]) for key, weight in weights(module).items())
    return module, same, opt.optimizer._sharding.has_owners


def reference(name: str) -> nn.Module:
    """The same steps without accelerate, on one process and the global batch."""
    module = model()
    train_plainly(module, optimizer(name, module), range(STEPS))
    return module


def use_fsdp(accelerator: Accelerator, blocks: list[str], state_dict_type: str) -> None:
    """What the plugin does on GPUs; on CPUs accelerate takes it and does not use it."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=blocks,
        state_dict_type=state_dict_type,
        cpu_ram_efficient_loading=False,
    )
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    assert accelerator.is_fsdp2


def scenarios() -> Iterator[tuple[str, Any]]:
    accelerator = Accelerator(cpu=True)
    for way in ("ddp", "ddp shared", "fsdp SHARDED_STATE_DICT", "fsdp FULL_STATE_DICT"):
        if way.startswith("fsdp"):
            use_fsdp(accelerator, ["Block"], way.split()[1])
        for name in ("Muon", "NorMuon"):
            folder = [tempfile.mkdtemp(dir=".")]
            distributed.broadcast_object_list(folder)
            module, same, owners = interrupted(accelerator, name, folder[0], shared=way == "ddp shared")
            far = error(module, reference(name), model())
            yield f"{way} {name}", {"error": far, "resumed": same, "owners": owners}


if __name__ == "__main__":
    pause_at_exit()
    torch.save(dict(scenarios()), f"rank{RANK}.pt")
    distributed.destroy_process_group()
