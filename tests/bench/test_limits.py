"""Flops are what torch itself counts; the published figures come out of the formulas."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from muonlab.bench import MUON_PEERS, SETS, ours
from muonlab.bench.limits import Work, flop_overhead, matmul_flops_per_second, model_flops
from muonlab.bench.timing import forward_backward

SHAPES = [(32, 96), (64, 64), (96, 32)]
STEPS_5 = Work("newton_schulz", 5, "bfloat16")


def counted(contender, shape):
    """Flops of one step, by torch's counter."""
    weight = nn.Parameter(torch.randn(shape))
    weight.grad = torch.randn(shape)
    optimizer = contender.build([weight])
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "contender",
    [MUON_PEERS["torch.optim.Muon"], ours("newton_schulz"), ours("gram")],
    ids=lambda found: found.config.partition("polar=")[2] or "torch",
)
def test_the_flops_of_polynomials_are_those_that_torch_counts(contender, shape):
    assert contender.work_on(shape, "cpu").flops(shape) == counted(contender, shape)


def test_the_flops_of_the_model_are_those_that_torch_counts():
    step = forward_backward(SHAPES, 40, "cpu")
    with FlopCounterMode(display=False) as counter:
        step()
    assert model_flops(SHAPES, 40) == counter.get_total_flops()


def test_flops_in_units():
    """A layer of GPT-2 small takes 140 units by five dense steps, 22 by two poles; Gram pays above aspect 1.5."""
    units = {
        work: sum(work.flops(shape) for shape in SETS["gpt2-small"].shapes) / (2 * 768**3)
        for work in (STEPS_5, Work("rational", 2, "float32"))
    }
    assert list(units.values()) == [140.0, 22.0]
    restarted = Work("gram", 5, "float16", num_restarts=1)
    assert restarted.units(1.5) == STEPS_5.units(1.5) and restarted.units(4.0) * 1.5 == STEPS_5.units(4.0)


def test_a_batch_of_matrices_is_that_many_matrices():
    assert STEPS_5.flops((3, 32, 96)) == 3 * STEPS_5.flops((32, 96))


def test_an_unknown_method_has_no_flops():
    with pytest.raises(ValueError, match="no flops are known for guess"):
        Work("guess", 1, "float32").flops((8, 8))
    assert ours("exact").work_on((8, 8), "cpu") is None


@pytest.mark.parametrize("shape", [(64, 64), (64, 256)])
def test_jordans_overhead_is_the_share_of_square_matrices_and_an_upper_bound(shape):
    share = STEPS_5.flops(shape) / model_flops([shape], 1000)
    bound = flop_overhead(5, 64, 1000)
    assert share == pytest.approx(bound) if shape[0] == shape[1] else 0.5 * bound < share < bound


def test_ranks_that_repeat_the_work_repeat_its_overhead():
    assert flop_overhead(5, 64, 1000, num_ranks=8) == 8 * flop_overhead(5, 64, 1000)


def test_the_machine_multiplies_at_some_speed():
    assert 1e8 < matmul_flops_per_second("float32", "cpu") < 1e14
