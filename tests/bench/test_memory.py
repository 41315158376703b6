"""Bytes against planted allocations."""

import torch
from torch import nn

from muonlab.bench.memory import STATE_SIDE, extra_bytes, state_bytes, state_bytes_per_parameter
from muonlab.optim import SOAP, Sophia

MIB = 2**20
SLACK = 8192


def temporary(mebibytes):
    return torch.empty(mebibytes * MIB, dtype=torch.uint8)


def test_the_peak_is_of_what_is_there_at_one_time():
    def one_after_the_other():
        for size in (3, 5, 2):
            temporary(size)

    def together():
        kept = [temporary(3), temporary(5)]
        del kept
        temporary(7)

    assert 0 <= extra_bytes(one_after_the_other, "cpu") - 5 * MIB < SLACK
    assert 0 <= extra_bytes(together, "cpu") - 8 * MIB < SLACK
    assert extra_bytes(lambda: None, "cpu") == 0


def test_temporaries_inside_an_operator_count():
    x = torch.randn(512, 512)
    assert extra_bytes(lambda: x.t() @ x + x.mul(2).add(1), "cpu") >= 2 * x.nbytes


def test_the_profilers_noise_stays_away(capfd):
    extra_bytes(lambda: temporary(1), "cpu")
    assert capfd.readouterr() == ("", "")


class Hoarder(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)
        weight = self.param_groups[0]["params"][0]
        buffer = torch.zeros(100, dtype=torch.float32)
        self.state[weight] = {
            "nested": {"list": [buffer[:10], buffer[10:]]},
            "weight": weight,
            "gradient": weight.grad,
            "step": 3,
            "half": torch.zeros(5, dtype=torch.bfloat16),
        }


def test_state_is_counted_once_and_parameters_never():
    weight = nn.Parameter(torch.zeros(50))
    weight.grad = torch.zeros(50)
    assert state_bytes(Hoarder([weight])) == 400 + 10


def test_state_per_parameter_is_that_of_one_matrix_when_all_of_it_is_there():
    assert state_bytes_per_parameter(lambda w: torch.optim.SGD([w], lr=0.1)) == 0
    assert state_bytes_per_parameter(lambda w: torch.optim.SGD([w], lr=0.1, momentum=0.9)) == 4
    assert state_bytes_per_parameter(lambda w: torch.optim.Adam([w])) == 8 + 4 / STATE_SIDE**2  # its counter of steps
    assert 24 <= state_bytes_per_parameter(lambda w: SOAP([w])) < 24.001  # two moments, two factors, two bases


def test_an_optimizer_that_observes_is_fed():
    made = []
    size = state_bytes_per_parameter(lambda w: made.append(Sophia([w])) or made[0])
    (state,) = made[0].state.values()
    assert state["hessian"].any() and 8 <= size < 8.001
