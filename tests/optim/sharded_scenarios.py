"""What each rank of test_sharding.py runs: a suite of scenarios, whose findings it writes to a file."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import Replicate, Shard

import muonlab
from muonlab.optim.sharding import layout_of
from muonlab.train.ranks import pause_at_exit

sys.path.insert(0, str(Path(__file__).parent))
import sharded_training as training

ONE_OF_A_KIND = ("Muon", "NorMuon", "AdamW")  # by directions, by weights, by itself
SAVED = ("Muon", "NorMuon", "SOAP")
VARIANTS = (
    "halved",
    "accumulated",
    "tied",
    "frozen",
    "unused",
    "empty",
    "experts",
    "few_experts",
    "buckets",
    "compiled",
)
SECONDS = 5.0  # of a process group, after which a rank that hangs is given up
Run = Callable[[], Any]


def spread(quick: bool, number: int) -> Iterator[tuple[str, Run]]:
    """Training in every way against one process."""
    ways = training.WAYS if number == 4 else ("ddp", "fsdp", "columns", "tp")[: 4 if number < 3 else 3]
    for way in ways:
        for name in ONE_OF_A_KIND if quick or number != 4 else training.OPTIMIZERS:
            yield f"spread {way} {name}", lambda way=way, name=name: invariance(way, name)
    if number != 4:
        return
    for variant in VARIANTS:
        ways = ["fsdp"] if quick else ["ddp", "fsdp", "hsdp", "fsdp_tp"]
        for way in [*ways, "columns"] if variant == "experts" else ways:
            everybody = (*ONE_OF_A_KIND, "MuonHyperball") if way in ("ddp", "fsdp") else ONE_OF_A_KIND[:2]
            for name in ("Muon",) if quick else everybody:
                yield f"{variant} {way} {name}", lambda v=variant, w=way, n=name: invariance(w, n, v)
    for way in ("ddp", "fsdp", "fsdp_tp"):
        yield f"observed {way} Sophia", lambda way=way: invariance(way, "Sophia", "observed")
    for name in ("Muon", "AdamW") if quick else (*ONE_OF_A_KIND, "MuonHyperball", "Kron", "AdamMini", "SGD"):
        yield f"placed anyhow {name}", lambda name=name: placed(name)
        yield f"placed on two meshes {name}", lambda name=name: two_meshes(name)
        for rounding in ("nearest", "master"):
            yield f"placed {rounding} {name}", lambda n=name, r=rounding: placed(n, rounding=r, dtype=torch.bfloat16)


def conduct(quick: bool, number: int) -> Iterator[tuple[str, Run]]:
    """How ranks agree, what they send, what they keep."""
    for way in ("ddp", "fsdp", "hsdp"):
        for name in SAVED:
            yield f"reloaded {way} {name}", lambda way=way, name=name: reloaded(way, name)
        yield f"nonfinite {way}", lambda way=way: nonfinite(way)
        yield f"missing {way}", lambda way=way: missing(way)
    yield "settings", settings
    yield "versions", versions
    yield "roles", roles
    yield "compiled module", compiled_module
    yield "lacking state", lacking_state
    yield "collectives", collectives
    for way in ("fsdp", "hsdp", "tp", "fsdp_tp", "columns"):
        yield f"boxes {way}", lambda way=way: boxes(way)
    yield "diagnostics", diagnostics
    for way, name in (("fsdp", "Muon"), ("hsdp", "Muon"), ("fsdp", "MuonHyperball"), ("ddp", "Muon")):
        for dtype in ("float32", "bfloat16"):
            yield f"bytes {way} {name} {dtype}", lambda w=way, n=name, d=dtype: sent_bytes(w, n, polar_dtype=d)


def save(quick: bool, number: int) -> Iterator[tuple[str, Run]]:
    for way in ("fsdp",) if quick else ("ddp", "fsdp", "hsdp", "fsdp_tp"):
        for name in SAVED:
            yield f"{way} {name}", lambda way=way, name=name: saved(way, name)


def resume(quick: bool, number: int) -> Iterator[tuple[str, Run]]:
    for before in ("fsdp",) if quick else ("ddp", "fsdp", "hsdp", "fsdp_tp"):
        for way in ("alone", "fsdp") if number == 1 else ("ddp", "fsdp"):
            for name in SAVED:
                yield f"{before} to {way} {name}", lambda b=before, w=way, n=name: resumed(b, w, n)


def leave(quick: bool, number: int) -> Iterator[tuple[str, Run]]:
    """One rank leaves; `signal` it is told by the environment."""
    yield "left", left


SUITES = {found.__name__: found for found in (spread, conduct, save, resume, leave)}


def invariance(way: str, name: str, variant: str = "") -> float:
    rank, number = training.data_ranks(way)
    even = way in training.EVEN
    options = _options(variant, name)
    module = training.WAYS[way](_start(name, variant, even))
    restore = training.bucket_bytes(64) if variant == "buckets" else lambda: None
    try:
        opt = training.optimizer(name, module, **options)
        how = {"parts": 3 if variant == "accumulated" else 1, "observing": variant == "observed"}
        training.train(module, opt, range(training.STEPS), rank, number, **how)
    finally:
        restore()
    return training.error(training.weights(module), *_alone(name, variant, even))


@cache
def _alone(name: str, variant: str, even: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of one process after the training, and before."""
    module = _start(name, variant, even)
    before = training.weights(module)
    opt = training.optimizer(name, module, **_options(variant, name))
    training.train(module, opt, range(training.STEPS), observing=variant == "observed")
    return training.weights(module), before


def _options(variant: str, name: str) -> dict[str, Any]:
    if variant == "compiled":
        return {"compile": "eager"}
    if variant == "halved" and "Muon" in name:
        return {"polar_dtype": "bfloat16"}
    return {"roles": {"blocks.2.weight": "expert"}} if "experts" in variant and name != "AdamW" else {}


def _start(name: str, variant: str, even: bool) -> nn.Module:
    """The model before training; `even` where the ranks have to divide its sides."""
    side, hidden = (8, 24) if even else (training.WIDTH, training.HIDDEN)
    if name in training.SQUARE:
        hidden = side
    if variant == "empty":
        hidden = 2 if even else 3
    num_experts = {"experts": 4, "few_experts": 6}.get(variant, 0)
    module = training.model(side, hidden, num_experts, tied=variant == "tied")
    if name in training.SQUARE:
        module.to(torch.float64)
    if variant == "frozen":
        module.blocks[0].up.weight.requires_grad_(False)
        module.norm.requires_grad_(False)
    if variant == "unused":
        module.unused = nn.Linear(training.WIDTH, training.WIDTH)
    return module


def placed(name: str, **settings: Any) -> float:
    """Every sort of placement of a mesh with two dimensions, in one optimizer."""
    return training.by_hand(name, training.PLACES, [training.grid("a", "b")], **settings)


def two_meshes(name: str) -> float:
    """Parameters over all ranks, and over pairs of them."""
    meshes = [training.line(), training.grid("a", "b")["b"]]
    return training.by_hand(name, [[Shard(0)], [Replicate()], [Shard(1)]], meshes)


def reloaded(way: str, name: str) -> float:
    """Two steps, the state dict loaded into a new optimizer, two more: against four."""
    spread, rank, number = training.WAYS[way], *training.data_ranks(way)
    module, through, start = spread(training.model()), spread(training.model()), training.model()
    training.train(through, training.optimizer(name, through), range(4), rank, number)
    first = training.optimizer(name, module)
    training.train(module, first, range(2), rank, number)
    again = training.optimizer(name, module)
    again.load_state_dict(first.state_dict())
    training.train(module, again, range(2, 4), rank, number)
    return training.error(*map(training.weights, (module, through, start)))


def nonfinite(way: str) -> tuple[bool, int]:
    """Whether a NaN in one rank's gradient leaves the weights alone everywhere, and how many steps were skipped."""
    module = training.WAYS[way](training.model())
    opt = training.optimizer("Muon", module)
    before = training.weights(module)
    training.backward(module, 0, *training.data_ranks(way))
    if distributed.get_rank() == 1:
        p = _inner(module).blocks[0].up.weight
        (p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad).fill_(float("nan"))
    opt.step()
    after = training.weights(module)
    return all(torch.equal(before[n], after[n]) for n in before), opt.num_skipped


def missing(way: str) -> str:
    module = training.WAYS[way](training.model())
    opt = training.optimizer("Muon", module)
    training.backward(module, 0, *training.data_ranks(way))
    if distributed.get_rank() == 2:
        _inner(module).blocks[1].down.weight.grad = None
    return _error_of(opt)


def settings() -> str:
    """A scheduler that looks at what only one rank sees."""
    module = training.fsdp(training.model())
    opt = training.optimizer("Muon", module)
    training.backward(module, 0, *training.data_ranks("fsdp"))
    if distributed.get_rank() == 3:
        opt.param_groups[0]["lr"] /= 2
    return _error_of(opt)


def roles() -> str:
    """A matrix that one rank takes for an output layer; the param groups are alike, but not who is in them."""
    module = training.fsdp(training.model())
    mine = {"blocks.1.down.weight": "head"} if distributed.get_rank() == 1 else {}
    opt = training.optimizer("Muon", module, roles=mine)
    training.backward(module, 0, *training.data_ranks("fsdp"))
    return _error_of(opt)


def compiled_module() -> float:
    """A DDP module inside a compiled one; the error, if matrices have owners."""
    module = training.ddp(training.model())
    opt = training.optimizer("Muon", torch.compile(module, backend="eager"))
    training.train(module, opt, range(training.STEPS), *training.data_ranks("ddp"))
    assert opt._sharding.has_owners
    return training.error(training.weights(module), *_alone("Muon", "", False))


def lacking_state() -> float:
    """A checkpoint of a model with a parameter that never had a gradient."""
    folder, ranks = FOLDER / "lacking", training.data_ranks("fsdp")
    module, again = (training.fsdp(_start("Muon", "unused", False)) for _ in range(2))
    opt, other = training.optimizer("Muon", module), training.optimizer("Muon", again)
    training.train(module, opt, range(2), *ranks)
    weights, state = get_state_dict(module, opt)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    weights, state = get_state_dict(again, other)
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder, planner=planner)
    set_state_dict(again, other, model_state_dict=weights, optim_state_dict=state)
    training.train(again, other, range(2, training.STEPS), *ranks)
    return training.error(training.weights(again), *_alone("Muon", "unused", False))


def versions() -> str:
    module = training.fsdp(training.model())
    opt = training.optimizer("Muon", module)
    training.backward(module, 0, *training.data_ranks("fsdp"))
    before = muonlab.__version__
    if distributed.get_rank() == 1:
        muonlab.__version__ = "0.0.1"
    try:
        return _error_of(opt)
    finally:
        muonlab.__version__ = before


def _error_of(opt: torch.optim.Optimizer) -> str:
    try:
        opt.step()
    except RuntimeError as found:
        return str(found)
    return "no error"


def _inner(module: nn.Module) -> nn.Module:
    return getattr(module, "module", module)


def boxes(way: str) -> bool:
    """Whether every rank has those elements of every parameter that its box says."""
    module = training.WAYS[way](_start("Muon", "", way in training.EVEN))
    found = []
    for p in module.parameters():
        if (layout := layout_of(p)) is not None:
            found.append(torch.equal(layout.boxes[layout.rank].of(p.full_tensor()), p.to_local()))
    return bool(found) and all(found)


def collectives() -> dict[str, int]:
    """Of a second step of Muon on a fully sharded model."""
    from torch.distributed.tensor.debug import CommDebugMode

    module = training.fsdp(training.model())
    opt = training.optimizer("Muon", module)
    training.train(module, opt, range(1), *training.data_ranks("fsdp"))
    training.backward(module, 1, *training.data_ranks("fsdp"))
    with CommDebugMode() as counted:
        opt.step()
    return {str(op): count for op, count in counted.get_comm_counts().items()}


def diagnostics() -> tuple[dict[str, float], dict[str, float]]:
    """Of a spread optimizer, and of one process."""
    found = []
    for way in (training.fsdp, lambda module: module):
        module = way(training.model())
        opt = training.optimizer("Muon", module)
        rank = training.data_ranks("fsdp") if not found else ()
        training.train(module, opt, range(2), *rank)
        found.append(opt.diagnostics())
    return found[0], found[1]


def sent_bytes(way: str, name: str, **settings: Any) -> tuple[int, int]:
    """Bytes that leave all ranks together in the exchanges of a step, and those of the matrices."""
    layers = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(12))).to(training.DEVICE)
    layers.blocks = list(layers)
    module = training.WAYS[way](layers)
    roles = {parameter: "hidden" for parameter, _ in layers.named_parameters()}
    opt = training.optimizer(name, module, roles=roles, **settings)
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    exchanged = distributed.all_to_all_single
    sent = torch.zeros(1, dtype=torch.int64, device=training.DEVICE)

    def counting(into: torch.Tensor, out: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.add_(out.numel() * out.element_size())
        return exchanged(into, out, *args, **kwargs)

    distributed.all_to_all_single = counting
    try:
        opt.step()
    finally:
        distributed.all_to_all_single = exchanged
    distributed.all_reduce(sent)
    return int(sent), sum(p.numel() * p.element_size() for p in module.parameters())


FOLDER = Path()


def saved(way: str, name: str) -> None:
    """Two steps, a checkpoint, two more steps, and the weights that they lead to."""
    module = training.WAYS[way](_start(name, "", way in training.EVEN))
    opt = training.optimizer(name, module)
    ranks = training.data_ranks(way)
    training.train(module, opt, range(2), *ranks)
    tensors, state = get_state_dict(module, opt)
    dcp.save({"model": tensors, "optimizer": state}, checkpoint_id=FOLDER / f"{way}-{name}")
    training.train(module, opt, range(2, 4), *ranks)
    end = training.weights(module)
    if distributed.get_rank() == 0:
        torch.save(end, FOLDER / f"{way}-{name}.pt")


def resumed(before: str, way: str, name: str) -> float:
    module = _start(name, "", before in training.EVEN)
    start, ranks = training.weights(module), (0, 1)
    if way != "alone":
        module, ranks = training.WAYS[way](module), training.data_ranks(way)
    opt = training.optimizer(name, module)
    tensors, state = get_state_dict(module, opt)
    dcp.load({"model": tensors, "optimizer": state}, checkpoint_id=FOLDER / f"{before}-{name}")
    set_state_dict(module, opt, model_state_dict=tensors, optim_state_dict=state)
    training.train(module, opt, range(2, 4), *ranks)
    return training.error(training.weights(module), torch.load(FOLDER / f"{before}-{name}.pt"), start)


def left() -> tuple[str, float]:
    """After a step, the last rank gets the signal that NUMBER names; what the others see, and after how long."""
    module = training.fsdp(training.model())
    opt = training.optimizer("Muon", module)
    ranks = training.data_ranks("fsdp")
    training.train(module, opt, range(1), *ranks)
    training.backward(module, 1, *ranks)
    if distributed.get_rank() == training.world() - 1:
        os.kill(os.getpid(), int(os.environ["NUMBER"]))
    started = time.monotonic()
    return _error_of(opt), time.monotonic() - started


def main(suite: str, quick: bool, rank: int, number: int, folder: str) -> None:
    global FOLDER
    torch.set_num_threads(1)
    backend = "gloo"
    if training.DEVICE == "cuda":
        torch.cuda.set_device(rank)
        backend = "nccl"
    FOLDER = Path(folder)
    store = distributed.FileStore(f"{folder}/rendezvous-{suite}-{number}", number)
    timeout = timedelta(seconds=SECONDS if suite == "leave" else 120)
    pause_at_exit()
    distributed.init_process_group(backend, store=store, rank=rank, world_size=number, timeout=timeout)
    found = {name: run() for name, run in SUITES[suite](quick, number)}
    torch.save(found, FOLDER / f"{suite}-{number}-{rank}.pt")
    with contextlib.suppress(RuntimeError):
        distributed.destroy_process_group()
    if suite == "leave":
        os.kill(os.getpid(), signal.SIGKILL)  # threads of gloo wait for the rank that is gone


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "quick", int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
