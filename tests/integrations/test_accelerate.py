"""accelerate: on one process, as DDP and as FSDP2, saved and resumed, at the weights of a plain loop."""

import pytest
import torch

pytest.importorskip("accelerate", reason="pip install 'muonlab[integrations]'")

ROUNDING = 1e-4  # of the way that the weights have gone: reductions in another order, in float32


@pytest.mark.parametrize("name", ["Muon", "SOAP", "AdamW"])
def test_one_process_makes_the_steps_of_a_plain_loop_and_resumes(training, tmp_path, name):
    accelerator = training.Accelerator(cpu=True)
    module, same, _ = training.interrupted(accelerator, name, str(tmp_path), shared=False)
    assert same
    plain = dict(training.reference(name).named_parameters())
    assert all(torch.equal(weight, plain[key]) for key, weight in module.named_parameters())


@pytest.mark.parametrize("name", ["Muon", "NorMuon"])
@pytest.mark.parametrize("way", ["ddp", "ddp shared", "fsdp SHARDED_STATE_DICT", "fsdp FULL_STATE_DICT"])
def test_two_processes_end_at_the_weights_of_one(ranks, way, name):
    for rank in ranks:
        found = rank[f"{way} {name}"]
        assert found["error"] < ROUNDING
        assert found["resumed"]
        assert found["owners"] == (way != "ddp")
