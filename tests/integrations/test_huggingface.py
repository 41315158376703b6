"""transformers: what its models' parameters are, and the Trainer with any optimizer, saved and resumed."""

import re
import warnings

import pytest
import torch
from torch import nn

import muonlab
from muonlab.errors import UsageError
from muonlab.integrations.huggingface import OptimizerFactory, fused_parts
from muonlab.optim import catalog

pytest.importorskip("accelerate", reason="pip install 'muonlab[integrations]'")
transformers = pytest.importorskip("transformers", reason="pip install 'muonlab[integrations]'")

ROUNDING = 1e-4  # of the way that the weights have gone: reductions in another order, in float32


def roles(optimizer):
    return {name: group["role"] for group in optimizer.param_groups for name in group["param_names"]}


def by_pattern(model, patterns):
    return {
        name: next(role for pattern, role in patterns.items() if re.search(pattern, name))
        for name, _ in model.named_parameters()
    }


def test_gpt2_is_routed(training):
    model = training.gpt2()
    optimizer = OptimizerFactory()(model)
    assert roles(optimizer) == by_pattern(
        model, {r"wte|wpe": "embedding", r"bias|ln_": "vector", r"c_attn|c_proj|c_fc": "hidden"}
    )
    lines = {line.split()[0]: line for line in optimizer.explain().splitlines()}
    assert "tied to lm_head.weight" in lines["transformer.wte.weight"]
    assert "stored as fan_in x fan_out; as 3 of 16 x 16" in lines["transformer.h.0.attn.c_attn.weight"]


def test_llama_is_routed(training):
    model = training.llama()
    patterns = {r"embed": "embedding", r"lm_head": "head", r"norm": "vector", r"_proj": "hidden"}
    assert roles(OptimizerFactory()(model)) == by_pattern(model, patterns)


def test_a_fused_projection_moves_as_its_parts_would_alone(training):
    model = training.gpt2()
    weight = model.transformer.h[0].attn.c_attn.weight  # (in, 3 x out)
    parts = [nn.Parameter(part.detach().T.clone()) for part in weight.split(16, dim=1)]
    weight.grad = torch.randn_like(weight)
    for part, gradient in zip(parts, weight.grad.split(16, dim=1), strict=True):
        part.grad = gradient.T.clone()
    OptimizerFactory()(model, lr=0.02, polar_dtype="float32").step()
    muonlab.Muon(parts, lr=0.02, polar_dtype="float32").step()
    torch.testing.assert_close(weight, torch.cat([part.T for part in parts], dim=1), atol=1e-6, rtol=0)


def test_phi3_is_taken_apart_by_its_heads(training):
    model = training.llama("Phi3")
    first = {name: sizes for name, sizes in fused_parts(model).items() if ".0." in name}
    assert first == {
        "model.layers.0.self_attn.qkv_proj.weight": (16, 8, 8),
        "model.layers.0.mlp.gate_up_proj.weight": (26, 26),
    }
    assert "fused?" not in OptimizerFactory()(model).explain()


@pytest.mark.parametrize(
    "told",
    [
        {"split_sizes": {"*.c_attn.weight": (16, 32)}},
        {"num_heads": {"*.c_attn.weight": 6}},
        {"roles": {"*.c_attn.weight": "embedding"}},
    ],
    ids=lambda told: next(iter(told)),
)
def test_what_the_user_says_of_a_fused_projection_counts(training, told):
    optimizer = OptimizerFactory()(training.gpt2(), **told)
    group = next(g for g in optimizer.param_groups if any("c_attn.weight" in name for name in g["param_names"]))
    ((key, said),) = told.items()
    assert group[key.removesuffix("s") if key == "roles" else key] == said["*.c_attn.weight"]
    assert key == "split_sizes" or group.get("split_sizes") is None


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_weight_decay_spares_what_the_trainer_spares(training, tmp_path, name, model):
    module = getattr(training, model)()
    optimizer = OptimizerFactory()(module, optimizer=name, weight_decay=0.1)
    decayed = {n for group in optimizer.param_groups if group["weight_decay"] for n in group["param_names"]}
    decayed_by_trainer = training.trainer(module, tmp_path).get_decay_parameter_names(module)
    assert decayed == set(decayed_by_trainer) & set(roles(optimizer))  # which name a tied weight once


@pytest.mark.parametrize("name", catalog.names())
def test_the_trainer_trains_with_every_optimizer(training, tmp_path, name):
    model = training.gpt2()
    before = training.weights(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sophia takes its first step")
        trainer = training.trainer(
            model, tmp_path, steps=2, optimizer_cls_and_kwargs=(OptimizerFactory, {"optimizer": name})
        )
        trainer.train()
    assert type(trainer.optimizer.optimizer) is catalog.get(name)
    after = training.weights(model)
    assert all(weight.isfinite().all() and not torch.equal(weight, before[n]) for n, weight in after.items())


def test_what_is_frozen_stays(training, tmp_path):
    model = training.llama()
    model.model.layers[0].requires_grad_(False)
    before = training.weights(model)
    training.trainer(model, tmp_path, steps=2).train()
    for name, weight in training.weights(model).items():
        assert torch.equal(weight, before[name]) == (".layers.0." in name)


def test_an_optimizer_is_named_or_given(training):
    model = training.gpt2()
    for given in ("NorMuon", muonlab.NorMuon, muonlab.optim.NorMuonRule):
        assert type(OptimizerFactory()(model, optimizer=given)) is muonlab.NorMuon
    with pytest.raises(UsageError, match="did you mean 'muon'"):
        OptimizerFactory()(model, optimizer="muno")
    for wrong in (torch.optim.SGD, muonlab.Muon(model), muonlab.optim.Engine):
        with pytest.raises(UsageError, match=r"optimizer must be a name, or a class of muonlab.optim"):
            OptimizerFactory()(model, optimizer=wrong)
    with pytest.raises(TypeError, match="unknown argument of Muon 'learning_rate'"):
        OptimizerFactory()(model, learning_rate=0.1)


def given(way, model):
    if way == "factory":
        return {}
    return {"optimizers": (OptimizerFactory()(model, optimizer="soap", lr=0.003), None)}


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("way", ["factory", "optimizers"])
def test_a_resumed_run_ends_at_the_same_bits(training, tmp_path, way, model):
    checkpoint = tmp_path / "through" / f"checkpoint-{training.STEPS // 2}"
    ends = {}
    for run in ("through", "resumed", "without the optimizer"):
        module = getattr(training, model)()
        resumed = None if run == "through" else str(checkpoint)
        if run == "without the optimizer":
            (checkpoint / "optimizer.pt").unlink()
        training.trainer(module, tmp_path / run, **given(way, module)).train(resume_from_checkpoint=resumed)
        ends[run] = training.weights(module)
    through, resumed, without = ends.values()
    assert all(torch.equal(weight, resumed[name]) for name, weight in through.items())
    assert not all(torch.equal(weight, without[name]) for name, weight in through.items())


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_end_at_the_weights_of_one(training, ranks, tmp_path, way):
    one, start = training.llama(), training.weights(training.llama())
    training.trainer(one, tmp_path).train()
    wanted = training.weights(one)
    for rank in ranks:
        (through, owners), (resumed, _) = rank[f"{way} through"], rank[f"{way} resumed"]
        assert max((through[n] - w).norm() / (w - start[n]).norm() for n, w in wanted.items()) < ROUNDING
        assert all(torch.equal(weight, resumed[name]) for name, weight in through.items())
        assert owners == (way == "fsdp")
