"""Training by transformers' Trainer, on one process or by two of them with gloo."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, distributed, nn

from muonlab.integrations.huggingface import OptimizerFactory
from muonlab.train.ranks import pause_at_exit

transformers.logging.set_verbosity_error()
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
VOCABULARY, STEPS = 33, 6  # uneven shards
SHAPE = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
MUON = {"optimizer": "muon", "lr": 0.02, "aux_lr": 0.005, "weight_decay": 0.1, "polar_dtype": "float32"}


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=12, **SHAPE)
    return transformers.GPT2LMHeadModel(config)


def llama(kind: str = "Llama") -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=16,
        intermediate_size=26,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        **SHAPE,
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def trainer(model: nn.Module, folder: str | Path, *, steps: int = STEPS, **given: Any) -> transformers.Trainer:
    """Half-way through it saves; by default it takes Muon from the factory."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (8 * STEPS, 12), generator=generator)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8 // WORLD,
        max_steps=steps,
        save_steps=STEPS // 2,
        warmup_steps=2,
        max_grad_norm=0.5,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    data = [{"input_ids": row, "labels": row} for row in tokens]
    given = given or {"optimizer_cls_and_kwargs": (OptimizerFactory, dict(MUON))}
    return transformers.Trainer(model, arguments, train_dataset=data, **given)


def weights(model: nn.Module) -> dict[str, Tensor]:
    whole = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in model.named_parameters()}
    return {name: p.detach().clone() for name, p in whole.items()}


def use_fsdp(found: transformers.Trainer) -> None:
    """What `fsdp_config` does on GPUs; on CPUs accelerate takes it and does not use it."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = found.accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        cpu_ram_efficient_loading=False,
    )
    PartialState._shared_state["distributed_type"] = state.distributed_type = DistributedType.FSDP
    found.is_fsdp_enabled = True


def scenarios() -> Iterator[tuple[str, Any]]:
    for way in ("ddp", "fsdp"):
        folder = tempfile.mkdtemp(dir=".") if RANK == 0 else "."
        checkpoint = None
        for run in ("through", "resumed"):
            found = trainer(llama(), folder)
            if way == "fsdp":
                use_fsdp(found)
            given = [folder]
            distributed.broadcast_object_list(given)
            folder = found.args.output_dir = given[0]
            found.train(resume_from_checkpoint=checkpoint)
            checkpoint = f"{folder}/checkpoint-{STEPS // 2}"
            yield f"{way} {run}", (weights(found.model), found.optimizer.optimizer._sharding.has_owners)


if __name__ == "__main__":
    pause_at_exit()
    torch.save(dict(scenarios()), f"rank{RANK}.pt")
    distributed.destroy_process_group()
