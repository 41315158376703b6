"""Lightning: one optimizer with a schedule; clipped, accumulated, saved and resumed; on one process and on two."""

import pytest
import torch

pytest.importorskip("lightning", reason="pip install 'muonlab[integrations]'")

ROUNDING = 1e-4  # of the way that the weights have gone: reductions in another order, in float32


def equal(one, other):
    theirs = dict(other.named_parameters())
    return all(torch.equal(weight, theirs[name]) for name, weight in one.named_parameters())


def test_a_fit_makes_the_steps_of_a_plain_loop(training):
    module = training.Module()
    trainer = training.fit(module)
    assert equal(module.model, training.plain_loop())
    lrs = {group["role"]: group["lr"] for group in trainer.optimizers[0].param_groups}
    assert lrs["hidden"] == pytest.approx(0.1 * 0.02) and lrs["embedding"] == pytest.approx(0.1 * 0.005)


def test_gradients_are_clipped(training):
    module = training.Module()
    training.fit(module, gradient_clip_val=training.CLIP)
    assert training.error(module.model, training.plain_loop(training.CLIP), training.model()) < ROUNDING
    assert not equal(module.model, training.plain_loop())


def test_gradients_are_accumulated(training):
    module = training.Module()
    trainer = training.fit(module, accumulate_grad_batches=2)
    assert trainer.global_step == training.EPOCHS * training.STEPS
    assert training.error(module.model, training.plain_loop(), training.model()) < ROUNDING


@pytest.mark.parametrize("name", ["Muon", "SOAP"])
def test_a_resumed_fit_ends_at_the_same_bits(training, tmp_path, name, monkeypatch):
    if name == "SOAP":
        monkeypatch.setattr(training, "optimizer", lambda module, _: training.muonlab.SOAP(module, lr=0.003))
    module, checkpoint = training.Module(name), str(tmp_path / "half.ckpt")
    training.fit(module)
    assert training.is_resumed(module, checkpoint, training.Module(name), training.Module(name))
    saved = torch.load(checkpoint, weights_only=True)
    saved["optimizer_states"][0]["state"] = {}
    torch.save(saved, checkpoint)
    without = training.Module(name)
    training.fit(without, resume=checkpoint)
    assert not equal(without, module)


@pytest.mark.parametrize("name", ["Muon", "NorMuon"])
@pytest.mark.parametrize("way", ["ddp", "ddp shared", "fsdp"])
def test_two_processes_end_at_the_weights_of_one(ranks, way, name):
    for rank in ranks:
        found = rank[f"{way} {name}"]
        assert found["error"] < ROUNDING
        assert found["resumed"]
        assert found["owners"] == (way != "ddp")
