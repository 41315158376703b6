"""Every Python block of docs/integrations.md runs, and trains what it says."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
HOSTS = ("transformers", "accelerate", "lightning")
LAST_LINES = {"transformers": "", "accelerate": "", "lightning": "print(trainer.global_step)\n"}


def host(block: str) -> str:
    return next(name for name in ("torchtitan", *HOSTS) if re.search(rf"^(from|import) {name}", block, re.MULTILINE))


@pytest.mark.parametrize("block", [b for b in BLOCKS if host(b) in HOSTS], ids=host)
def test_a_block_runs(torchrun, tmp_path, block):
    pytest.importorskip(host(block), reason="pip install 'muonlab[integrations]'")
    script = tmp_path / "train.py"
    script.write_text(block + LAST_LINES[host(block)])
    said = torchrun(script, tmp_path, processes=2 if block.startswith("# torchrun") else 1)
    if host(block) == "transformers":
        assert re.search(r"^lm_head\.weight .* adamw ", said, re.MULTILINE)
        assert (tmp_path / "run" / "checkpoint-4" / "optimizer.pt").exists()
    elif host(block) == "lightning":
        assert set(re.findall(r"^\d+$", said, re.MULTILINE)) == {"8"}
    elif "save_state" in block:
        assert (tmp_path / "checkpoint" / "optimizer.bin").exists()


def test_torchtitans_block_against_a_stand_in(monkeypatch):
    """Its groups, as it makes them of patterns, are taken, and one optimizer has them all."""

    @dataclass
    class ParamGroupConfig:
        pattern: str
        optimizer_name: str
        optimizer_kwargs: dict[str, Any]

    class OptimizersContainer:
        @dataclass(kw_only=True, slots=True)
        class Config:
            pass

        @staticmethod
        def _resolve_optimizer_factory(name: str) -> type[torch.optim.Optimizer]:
            return {"AdamW": torch.optim.AdamW}[name]

    stand_in = ModuleType("torchtitan.components.optimizer")
    stand_in.OptimizersContainer, stand_in.ParamGroupConfig = OptimizersContainer, ParamGroupConfig
    for name in ("torchtitan", "torchtitan.components"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    found: dict[str, Any] = {"__name__": "train"}
    exec(next(block for block in BLOCKS if host(block) == "torchtitan"), found)

    model = nn.ModuleDict({"embeddings": nn.Embedding(8, 4), "layer": nn.Linear(4, 4), "output": nn.Linear(4, 8)})
    left = dict(model.named_parameters())
    groups = []
    for config in found["param_groups"]:
        names = [name for name in left if re.search(config.pattern, name)]
        params = [left.pop(name) for name in names]
        groups.append(
            {"params": params, "param_names": names, "fused": True, "foreach": False, **config.optimizer_kwargs}
        )
    resolve = found["MuonlabOptimizers"]._resolve_optimizer_factory
    optimizer = resolve("muonlab.muon")(groups)
    assert resolve("AdamW") is torch.optim.AdamW
    rules = {name: group["algorithm"] for group in optimizer.param_groups for name in group["param_names"]}
    assert {name for name, rule in rules.items() if rule == "muon"} == {"layer.weight"}
    assert rules.keys() == dict(model.named_parameters()).keys()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
