"""Every example runs, learns, and is routed right without a word about its parameters."""

import importlib.util
import re
import runpy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import muonlab

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["gpt", "resnet", "moe"])
def test_example_learns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) >= 2 and losses[-1] < 0.9 * losses[0]


def roles_of(model: nn.Module, **arguments) -> dict[str, str]:
    optimizer = muonlab.Muon(model, **arguments)
    return {name: group["role"] for group in optimizer.param_groups for name in group["param_names"]}


def expected(model: nn.Module, patterns: dict[str, str]) -> dict[str, str]:
    return {
        name: next(role for pattern, role in patterns.items() if re.search(pattern, name))
        for name, _ in model.named_parameters()
    }


def test_gpt() -> None:
    model = load("gpt").GPT()
    wanted = {r"^w[tp]e": "embedding", r"norm|bias": "vector", r"qkv|out|mlp": "hidden"}
    assert roles_of(model) == expected(model, wanted)


def test_resnet() -> None:
    model = load("resnet").ResNet()
    wanted = {r"bn|bias": "vector", r"conv|shortcut": "conv", r"^fc": "head"}
    assert roles_of(model) == expected(model, wanted)


def test_moe() -> None:
    model = load("moe").MoE()
    wanted = {
        r"^embed": "embedding",
        r"^lm_head": "head",
        r"norm|bias": "vector",
        r"experts": "expert",
        r"router|shared": "hidden",
    }
    assert roles_of(model) == expected(model, wanted)


class Conv1D(nn.Module):
    """The layer of transformers' GPT-2: a linear map that is stored as (fan_in, fan_out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def test_a_transposed_layer_steps_like_its_linear_twin() -> None:
    stored = nn.ModuleList([Conv1D(12, 4)])
    twin = nn.ModuleList([nn.Linear(4, 12, bias=False, dtype=torch.float64)])
    twin[0].weight.data = stored[0].weight.data.mT.clone()
    g = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    twin[0].weight.grad, stored[0].weight.grad = g, g.mT.clone()
    for model in (stored, twin):
        arguments = {"roles": {"0.weight": "hidden"}, "split_sizes": {"0.weight": (4, 4, 4)}}
        optimizer = muonlab.Muon(model, lr=0.1, polar_dtype="float64", adjust_lr_fn="spectral", **arguments)
        optimizer.step()
    torch.testing.assert_close(stored[0].weight.mT, twin[0].weight, atol=1e-12, rtol=0)
    assert "stored as fan_in x fan_out" in muonlab.Muon(stored).explain()


def test_what_cannot_be_told_is_one_line_that_says_what_to_write() -> None:
    model = nn.Module()
    model.mixing = nn.Parameter(torch.zeros(3, 4, 5))
    with pytest.raises(ValueError, match=r'mixing has shape \(3, 4, 5\).*roles=\{"mixing": "expert"\}') as error:
        muonlab.Muon(model)
    assert "\n" not in str(error.value)
