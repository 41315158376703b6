"""Steps whose gradients are not finite: skipped as a whole, without the host waiting on an accelerator."""

import copy
import math
import pickle

import pytest
import torch
from stepping import bits, decaying, each, each_way, fill_gradients, has, state_bits, steps, weights
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

import muonlab
from muonlab.kernels import normalise
from muonlab.optim import guard

BAD = [math.nan, math.inf, -math.inf]


def spoil(params, seed: int) -> None:
    """One bad element somewhere."""
    generator = torch.Generator().manual_seed(seed)
    p = params[int(torch.randint(len(params), (), generator=generator))]
    p.grad.view(-1)[int(torch.randint(p.numel(), (), generator=generator))] = BAD[seed % 3]


@each
@pytest.mark.parametrize("bad", BAD)
def test_a_nonfinite_gradient_skips_the_whole_step(cls, arguments, bad, path) -> None:
    params, twins = weights(3), weights(3)
    optimizer, other = cls(params, **arguments), cls(twins, **arguments)
    steps(optimizer, params, [0])
    steps(other, twins, [0])
    before, state = bits(params), state_bits(other)
    fill_gradients(params, 1)
    params[1].grad[0, 0] = bad
    optimizer.step()
    assert bits(params) == before and optimizer.num_skipped == 1 and state_bits(optimizer) == state
    steps(optimizer, params, [2])
    steps(other, twins, [2])
    assert bits(params) == bits(twins) and state_bits(optimizer) == state_bits(other)
    free = cls(params, **arguments, skip_nonfinite=False)
    params[1].grad[0, 0] = bad
    free.step()
    marked = [params[1], *free.state[params[1]].values()]  # the sign of NaN is 0: of the weight nothing can be seen
    assert not all(value.isfinite().all() for value in marked) and free.num_skipped == 0


@each_way
def test_the_device_decides_as_the_host_would_bit_for_bit(cls, arguments, decay, rounding, monkeypatch) -> None:
    """Bad steps at random places, also the very first: weights, state, counters; as if they had been left out."""
    bad_steps = {0, 3, 4, 8}

    def run(devices: set, left_out: bool = False):
        monkeypatch.setattr(guard, "SYNCHRONOUS_DEVICES", devices)
        params = [*weights(3), *weights(2, (4, 6), torch.bfloat16)]
        settings = {**arguments, **decaying(cls, 0.3), "decay": decay, "rounding": rounding}
        optimizer = cls(params, **settings)
        for seed in range(10):
            fill_gradients(params, seed)
            if seed in bad_steps and not left_out:
                spoil(params, seed)
            if seed not in bad_steps or not left_out:
                optimizer.step()
        return optimizer.num_skipped, bits(params), state_bits(optimizer)

    on_host, on_device = run({"cpu"}), run(set())
    assert on_host[0] == on_device[0] == len(bad_steps)
    assert on_host[1:] == on_device[1:]
    assert on_host[1:] == run({"cpu"}, left_out=True)[1:]


@each
def test_a_first_step_that_is_skipped_is_not_a_first_step(cls, arguments, path) -> None:
    """Bias correction of AdamW and the first momentum of SGD start with the first step that is made."""
    params, twins = weights(2), weights(2)
    extra = {"dampening": 0.5} if cls is muonlab.SGD else {}
    optimizer, other = cls(params, **arguments, **extra), cls(twins, **arguments, **extra)
    fill_gradients(params, 0)
    spoil(params, 0)
    optimizer.step()
    steps(optimizer, params, [1, 2])
    steps(other, twins, [1, 2])
    assert bits(params) == bits(twins) and state_bits(optimizer) == state_bits(other)


@each
@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle", "num_skipped"])
def test_every_way_to_look_counts_a_step_that_is_still_pending(cls, arguments, way, no_waiting) -> None:
    params = weights(2)
    optimizer = cls(params, **arguments)
    steps(optimizer, params, [0])
    fill_gradients(params, 1)
    spoil(params, 1)
    optimizer.step()
    if way == "state_dict":
        saved = optimizer.state_dict()
        assert [group["num_skipped"] for group in saved["param_groups"]] == [1]
        assert all(state.get("step", 1) == 1 for state in saved["state"].values())
        fresh = cls(weights(2), **arguments)
        fresh.load_state_dict(saved)
        assert fresh.num_skipped == 1
    elif way == "num_skipped":
        assert optimizer.num_skipped == 1
    else:
        twin = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
        assert twin.num_skipped == 1 and state_bits(twin) == state_bits(optimizer)


@each
def test_loading_forgets_what_was_pending(cls, arguments, no_waiting) -> None:
    """A counter of the old state must not be taken back from the new one."""
    params = weights(2)
    optimizer = cls(params, **arguments)
    steps(optimizer, params, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    fill_gradients(params, 1)
    spoil(params, 1)
    optimizer.step()
    optimizer.load_state_dict(saved)
    assert optimizer.num_skipped == 0
    steps(optimizer, params, [5])
    assert all(state.get("step", 4) == 4 for state in optimizer.state.values())


def test_the_count_is_that_of_steps_and_not_of_groups(path) -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    optimizer = muonlab.Muon(model)
    params = list(model.parameters())
    for seed in range(4):
        fill_gradients(params, seed)
        if seed % 2:
            spoil(params, seed)
        optimizer.step()
    optimizer.add_param_group({"params": [("late", nn.Parameter(torch.ones(3, 3)))]})
    assert optimizer.num_skipped == 2
    fill_gradients(params, 7)
    spoil(params, 7)
    optimizer.step()
    assert optimizer.num_skipped == 3


@each
@pytest.mark.parametrize("dtype,value", [(torch.float32, 3e38), (torch.float16, 6e4), (torch.bfloat16, 3e38)])
def test_large_finite_gradients_are_not_mistaken_for_infinite(cls, arguments, dtype, value, path) -> None:
    params = weights(2, (64, 64), dtype)
    optimizer = cls(params, **arguments)
    for p in params:
        p.grad = torch.full_like(p, value)
    optimizer.step()
    assert optimizer.num_skipped == 0


@each
def test_without_the_guard_no_decomposition_fails_on_what_is_not_finite(cls, arguments, path) -> None:
    """Weights and state may become NaN, as was asked for."""
    for more in ({}, {"polar": "exact"}, {"polar": "rational"})[: 3 if has(cls, "polar") else 1]:
        params = weights(2)
        optimizer = cls(params, **arguments, **more, skip_nonfinite=False)
        for seed in range(6):
            fill_gradients(params, seed)
            if seed == 2:
                params[0].grad[1, 1] = math.nan
            optimizer.step()
        assert optimizer.num_skipped == 0 and params[1].isfinite().all()


@each
def test_nothing_to_look_at_is_finite(cls, arguments, path) -> None:
    params = [*weights(1, (0, 3)), *weights(1, (3, 0))]
    optimizer = cls(params, **arguments)
    steps(optimizer, params, [0])
    assert optimizer.num_skipped == 0


class HostRead(AssertionError):
    """The host looked at a number that only the device knows."""


class NoReading(TorchFunctionMode):
    """Whatever is computed from the given tensors must not reach the host."""

    READS = ("item", "tolist", "numpy", "equal", "allclose", "nonzero", "is_nonzero", "masked_select", "cpu")
    DUNDER_READS = ("__bool__", "__float__", "__int__", "__index__", "__array__", "__contains__")

    def __init__(self, sources) -> None:
        super().__init__()
        self.kept: list[Tensor] = []  # alive, so that no other tensor gets their address
        self.secret: set[int] = set()
        self.add(sources)

    def add(self, found) -> None:
        for item in _pytree.tree_leaves(found):
            if isinstance(item, Tensor) and item.numel():
                self.kept.append(item)
                self.secret.add(item.untyped_storage().data_ptr())

    def __torch_function__(self, func, types, args=(), kwargs=None):
        leaves = [item for item in _pytree.tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        with torch._C.DisableTorchFunction():
            touched = any(item.untyped_storage().data_ptr() in self.secret for item in leaves if item.numel())
        name = getattr(func, "__name__", "")
        if touched and (name in self.READS or name in self.DUNDER_READS):
            raise HostRead(f"{name} of a number that depends on this step's gradients")
        result = func(*args, **(kwargs or {}))
        if touched:
            with torch._C.DisableTorchFunction():
                self.add(result)
                if name.endswith("_") and not name.endswith("__"):
                    self.add(args[0])
        return result


@pytest.fixture
def not_the_kernels(monkeypatch) -> None:
    """On a CPU the polar factor may look at its norms; elsewhere it takes the branch without."""
    monkeypatch.setattr(normalise, "eager_on_cpu", lambda x: False)


@each_way
def test_a_step_reads_nothing_that_depends_on_its_gradients(
    cls, arguments, decay, rounding, no_waiting, not_the_kernels
) -> None:
    params = [*weights(3), *weights(1, dtype=torch.bfloat16)]
    optimizer = cls(params, **arguments, **decaying(cls, 0.1), decay=decay, rounding=rounding)
    for seed in range(3):
        fill_gradients(params, seed)
        with NoReading([p.grad for p in params]):
            optimizer.step()
    assert optimizer.num_skipped == 0


def test_a_step_of_a_whole_model_reads_nothing_either(no_waiting, not_the_kernels) -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 4), nn.Linear(4, 9))
    optimizer, params = muonlab.Muon(model), list(model.parameters())
    for seed in range(3):
        fill_gradients(params, seed)
        with NoReading([p.grad for p in params]):
            optimizer.step()


@each
def test_the_detector_sees_the_host_looking(cls, arguments) -> None:
    params = weights(2)
    optimizer = cls(params, **arguments)
    fill_gradients(params, 0)
    with pytest.raises(HostRead), NoReading([p.grad for p in params]):
        optimizer.step()
    for read in (lambda x: x.item(), lambda x: bool(x > 0), lambda x: (x * 2).tolist(), lambda x: float(x)):
        with pytest.raises(HostRead), NoReading([params[0].grad]):
            read(params[0].grad[0, 0])
