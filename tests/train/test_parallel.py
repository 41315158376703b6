"""A run over ranks is the run of one process, wherever it stopped and however many go on; ranks end together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from muonlab.errors import UsageError
from muonlab.tasks.synthetic import Synthetic
from muonlab.train.checkpoint import Checkpoints
from muonlab.train.loop import train
from muonlab.train.parallel import Parallel
from muonlab.train.ranks import Alone

SCRIPT = Path(__file__).with_name("parallel_training.py")
ROUNDING = 1e-6  # of a loss, relative
LIMIT = 600

pytestmark = pytest.mark.timeout(LIMIT)


def script() -> ModuleType:
    found = spec_from_file_location("parallel_training", SCRIPT)
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


RUNS = script()


def launch(command: list[str], number: int, folder: Path, **how: Any) -> list[subprocess.Popen]:
    """The same command on so many ranks."""
    rendezvous = folder / f"rendezvous-{number}-{time.monotonic_ns()}"
    common = {"WORLD_SIZE": str(number), "RENDEZVOUS": str(rendezvous), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
            **how,
        )
        for rank in range(number)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {quick: tmp_path_factory.mktemp("runs") for quick in (True, False)}


@pytest.fixture(scope="module")
def found(folders):
    """What ranks find, on four first, whose checkpoints the others go on from."""
    done: dict[tuple, list[dict[str, Any]]] = {}

    def find(quick: bool, number: int) -> list[dict[str, Any]]:
        if number != 4:
            find(quick, 4)
        if (quick, number) not in done:
            folder = folders[quick]
            children = launch([str(SCRIPT), "quick" if quick else "full", str(folder)], number, folder)
            errors = [child.communicate(timeout=LIMIT)[1] for child in children]
            assert not any(child.returncode for child in children), "\n".join(error[-1500:] for error in errors)
            done[quick, number] = [
                torch.load(folder / f"found-{number}-{rank}.pt", weights_only=False) for rank in range(number)
            ]
        return done[quick, number]

    return find


@pytest.fixture(scope="module")
def alone():
    """Final losses of one process, by optimizer."""
    return {optimizer: train(RUNS.spec(optimizer)).final_loss for optimizer in RUNS.OPTIMIZERS}


EXTENTS = [
    pytest.param(True, len(RUNS.QUICK_WAYS), id="quick"),
    pytest.param(False, len(RUNS.WAYS) * len(RUNS.OPTIMIZERS), marks=pytest.mark.dist, id="full"),
]


@pytest.mark.parametrize(("quick", "number_of_runs"), EXTENTS)
def test_a_run_over_ranks_is_that_of_one_process(found, alone, quick, number_of_runs):
    for rank in found(quick, 4):
        assert len(rank) == 2 * number_of_runs
        for name, loss in rank.items():
            assert loss == pytest.approx(alone[name.split()[1]], rel=ROUNDING), name


@pytest.mark.parametrize("number", [pytest.param(n, marks=() if n == 2 else pytest.mark.dist) for n in (1, 2, 3)])
@pytest.mark.parametrize(("quick", "number_of_runs"), EXTENTS)
def test_any_number_of_ranks_goes_on_from_a_checkpoint(found, alone, quick, number_of_runs, number):
    for rank in found(quick, number):
        resumed = {name: value for name, value in rank.items() if " to " in name}
        assert len(resumed) == 2 * number_of_runs
        for name, (loss, num_steps) in resumed.items():
            assert loss == pytest.approx(alone[name.split()[-1]], rel=ROUNDING), name
            assert num_steps == RUNS.NUM_STEPS - RUNS.STOP


@pytest.mark.parametrize("way", RUNS.QUICK_WAYS)
def test_one_process_goes_on_from_the_checkpoint_of_many(found, folders, alone, way):
    found(True, 4)
    folder = RUNS.cloned(Alone(), folders[True] / f"{way} muon", "alone")
    loss, num_steps = RUNS.gone_on(Alone(), folder, "muon")
    assert loss == pytest.approx(alone["muon"], rel=ROUNDING)
    assert num_steps == RUNS.NUM_STEPS - RUNS.STOP


@pytest.mark.dist
def test_many_go_on_from_the_checkpoint_of_one(alone, tmp_path):
    RUNS.stopped(Alone(), tmp_path / "run", "muon")
    command = (
        "import sys, os, torch; sys.path.insert(0, sys.argv[1]); import parallel_training as runs\n"
        "from torch import distributed\n"
        "from pathlib import Path\n"
        "store = distributed.FileStore(os.environ['RENDEZVOUS'], 2)\n"
        "distributed.init_process_group('gloo', store=store, rank=int(os.environ['RANK']), world_size=2)\n"
        "print(*runs.gone_on(runs.Ranks('fsdp', 'cpu', 60.0), Path(sys.argv[2]), 'muon'))\n"
        "distributed.destroy_process_group()"
    )
    children = launch(["-c", command, str(SCRIPT.parent), str(tmp_path / "run")], 2, tmp_path, stdout=subprocess.PIPE)
    for child in children:
        out, errors = child.communicate(timeout=LIMIT)
        assert child.returncode == 0, errors[-1500:]
        loss, num_steps = out.split()
        assert float(loss) == pytest.approx(alone["muon"], rel=ROUNDING)
        assert int(num_steps) == RUNS.NUM_STEPS - RUNS.STOP


def test_a_damaged_folder_is_passed_over_for_the_one_before(found, folders, tmp_path):
    found(True, 4)
    older = RUNS.cloned(Alone(), folders[True] / "ddp muon", "damaged")
    (path,) = older.iterdir()
    newer = path.with_name(f"step-{RUNS.STOP + 1:09d}")
    shutil.copytree(path, newer)
    shard = max(newer.glob("*.distcp"), key=lambda file: file.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{newer.name} is damaged; using the one before it"):
        assert RUNS.gone_on(Alone(), older, "muon")[1] == RUNS.NUM_STEPS - RUNS.STOP


def test_a_folder_that_was_not_completed_is_no_checkpoint(tmp_path):
    RUNS.stopped(Alone(), tmp_path, "adamw")
    (tmp_path / f"step-{RUNS.STOP + 1:09d}.77.tmp").mkdir()
    assert Checkpoints(tmp_path).newest().values["step"] == RUNS.STOP


@pytest.mark.parametrize(
    ("text", "number", "grid"),
    [
        ("ddp", 4, Parallel(4, 1, 1)),
        ("fsdp", 4, Parallel(1, 4, 1)),
        ("HSDP=2x4", 8, Parallel(2, 4, 1)),
        ("hsdp=2x2,tp=2", 8, Parallel(2, 2, 2)),
        ("fsdp, tp=2", 8, Parallel(1, 4, 2)),
        ("tp=4", 4, Parallel(1, 1, 4)),
        ("fsdp", 1, Parallel(1, 1, 1)),
    ],
)
def test_ways_to_spread(text, number, grid):
    assert Parallel.parse(text, number) == grid


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("zero", "unknown way of --parallel 'zero'"),
        ("", "unknown way of --parallel"),
        ("ddp,fsdp", "cannot be combined"),
        ("ddp,tp=2", "cannot be combined"),
        ("fsdp,fsdp", "twice"),
        ("tp=3", "4 ranks are no multiple of 3"),
        ("tp", "as in tp=2"),
        ("tp=0", "as in tp=2"),
        ("hsdp", "as in hsdp=2x4"),
        ("hsdp=2x4", "needs 8 ranks, there are 4"),
        ("fsdp=4", "take no value"),
    ],
)
def test_what_does_not_fit_is_one_line(text, told):
    with pytest.raises(UsageError, match=told) as caught:
        Parallel.parse(text, 4)
    assert "\n" not in str(caught.value)


def test_heads_that_ranks_do_not_divide_are_one_line():
    task = Synthetic(**{**RUNS.SHAPE, "num_heads": 2})
    with pytest.raises(UsageError, match="tp=4 must divide the model's heads, 2"):
        task.tensor_parallel_plan(task.build(), 4)


def test_a_plan_that_misses_the_model_is_one_line(monkeypatch):
    task = Synthetic(**RUNS.SHAPE)
    for plan, told in (({}, "it is empty"), ({"blocks.0.attention.qq": None}, "'blocks.0.attention.qq' is no module")):
        monkeypatch.setattr(Synthetic, "tensor_parallel_plan", lambda *_, plan=plan: plan)
        with pytest.raises(UsageError, match=told):
            Parallel(tensor=2).spread(task, task.build(), {"tensor": Sized()})


class Sized:
    """What a plan needs of a mesh."""

    def size(self):
        return 2


TRAIN = [
    "train", "text-synthetic", "--optimizer", "adamw", "--tokens", "6144", "--batch-tokens", "384", "--json",
    "--no-progress", *(word for name, value in RUNS.SHAPE.items() for word in ("--set", f"task.{name}={value}")),
]  # fmt: skip


def torchrun(folder: Path, *arguments: str, number: int = 2) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    return subprocess.Popen(
        [*launcher, "-m", "muonlab", *TRAIN, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.dist
def test_torchrun_keeps_one_record_and_says_it_once(tmp_path):
    (tmp_path / "run.toml").write_text('parallel = "fsdp"\ntokens = 768\n')
    documents = []
    for _ in range(2):
        child = torchrun(tmp_path, "--config", "run.toml")
        out, errors = child.communicate(timeout=LIMIT)
        assert child.returncode == 0, errors
        documents.append(json.loads(out))
    first, second = documents
    assert (first["environment"]["ranks"], first["environment"]["parallel"]) == (2, "fsdp")
    assert (first["runs_executed"], second["runs_executed"]) == (1, 0)
    assert first["final_loss"] == second["final_loss"]


@pytest.mark.parametrize("before", ["", "Ranks.check_same = None\n"], ids=["used", "refused"])
def test_other_threads_have_a_turn_before_ranks_end(tmp_path, before):
    """Those of gloo, which would abort if they came later."""
    command = (
        "import atexit, sys, threading; from contextlib import suppress; from muonlab.train.ranks import Ranks\n"
        "from torch import distributed\n"
        "begun, had_turn = threading.Event(), threading.Event()\n"
        "atexit.register(lambda: print(had_turn.is_set()))  # after what is registered later\n"
        "threading.Thread(target=lambda: begun.wait() and had_turn.set(), daemon=True).start()\n"
        "distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)\n"
        f"{before}with suppress(TypeError): ranks = Ranks('ddp', 'cpu', 60.0)\n"
        "sys.setswitchinterval(60.0)  # no other thread's turn but in a pause of this one\n"
        "begun.set()"
    )
    (child,) = launch(["-c", command], 1, tmp_path, stdout=subprocess.PIPE)
    out, errors = child.communicate(timeout=LIMIT)
    assert out == "True\n", errors


@pytest.mark.dist
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--parallel", "hsdp=2x2"], "needs 4 ranks, there are 2"),
        (["--batch-tokens", "16", "--tokens", "160"], "dealt evenly, 1 at a time to 2 data-parallel ranks"),
        (["--parallel", "tp=2", "--set", "task.num_heads=1"], "tp=2 must divide the model's heads, 1"),
    ],
)
def test_what_ranks_cannot_do_ends_them_all_with_one_line(tmp_path, arguments, told):
    child = torchrun(tmp_path, *arguments)
    _, errors = child.communicate(timeout=LIMIT)
    assert child.returncode != 0
    assert [told in line for line in errors.splitlines() if line.startswith("muonlab:")] == [True]
    assert 'Traceback (most recent call last):\n  File "' + str(Path(__file__).parents[2]) not in errors


@pytest.mark.dist
@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("--seed 1", "--seed 2", "seed is 1 on rank 0 and 2 on rank 1"),
        ("--parallel ddp", "--parallel fsdp", "--parallel is ddp on rank 0 and fsdp on rank 1"),
        ("--eval-every 2", "--eval-every 4", "eval_every is 2 on rank 0 and 4 on rank 1"),
    ],
)
def test_ranks_of_different_commands_say_so(tmp_path, first, second, told):
    script = tmp_path / "rank.sh"
    own = f'[ "$RANK" = 0 ] && more="{first}" || more="{second}"'
    script.write_text(f"#!/bin/sh\n{own}\nexec {sys.executable} -m muonlab {' '.join(TRAIN)} $more\n")
    script.chmod(0o755)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run([*launcher, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("muonlab:")]
    assert done.returncode != 0 and "ranks were started by different commands: " + told in line


def test_ranks_need_torchrun(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    child = subprocess.run(
        [sys.executable, "-m", "muonlab", *TRAIN, "--parallel", "fsdp"], cwd=tmp_path, env=environment, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert child.returncode == 2
    assert child.stderr == (
        "muonlab: --parallel fsdp needs several ranks: start them with torchrun --nproc-per-node 4 -m muonlab train "
        "...\n"
    )


@pytest.mark.dist
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_after_an_end_before_its_time_the_same_command_goes_on(tmp_path, how):
    """SIGKILL of one rank loses the steps since the last checkpoint; SIGTERM of all of them none."""
    long = ["--tokens", str(384 * 4000), "--parallel", "ddp", "--timeout", "20"]
    child = torchrun(tmp_path, *long)
    time.sleep(15)  # past the start
    assert child.poll() is None
    if how == signal.SIGTERM:
        child.terminate()
    else:
        ranks = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True, check=True)
        os.kill(int(ranks.stdout.split()[-1]), how)
    out, _ = child.communicate(timeout=120)
    assert child.returncode != 0 and ("raise --timeout" in out) == (how == signal.SIGKILL)
    if how == signal.SIGTERM:
        (folder,) = (tmp_path / "muonlab-artifacts").iterdir()
        assert [path.suffix for path in folder.iterdir()] == [""]
