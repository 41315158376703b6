import ast
from pathlib import Path

import pytest
import torch

from muonlab.tasks.base import Task
from muonlab.tasks.catalog import locate, resolve

FILE = Path(__file__).parents[2] / "examples" / "own_model.py"


@pytest.fixture(scope="module")
def task():
    return resolve(f"{FILE}:Task", {"width": 32})


def train(task, lr, num_steps=150, batch=64):
    torch.manual_seed(0)
    model = task.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / num_steps)
        optimizer.zero_grad()
        task.loss(model, task.batch(0, step * batch, batch)).backward()
        optimizer.step()
    with torch.no_grad():
        return sum(task.loss(model, held).item() for held, _ in task.evaluation())  # one batch


def test_the_example_imports_torch_alone():
    imported = set()
    for node in ast.walk(ast.parse(FILE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported == {"torch"}


def test_the_example_is_a_task(task):
    assert isinstance(task, Task)
    info = locate(f"{FILE}:Task")
    assert info.name == "own_model:Task" and info.options == {"width": 64, "depth": 2}


def test_batches_are_slices_of_one_stream_also_across_epochs(task):
    inputs, labels = task.batch(1, 16380, 8)
    pieces = [task.batch(1, 16380, 3), task.batch(1, 16383, 5)]
    assert torch.equal(inputs, torch.cat([x for x, _ in pieces])) and torch.equal(
        labels, torch.cat([y for _, y in pieces])
    )
    assert not torch.equal(inputs, task.batch(2, 16380, 8)[0])
    first_epoch = task.batch(1, 0, 16384)[0]
    assert len(first_epoch.unique(dim=0)) == 16384


def test_held_out_points_are_never_trained_on(task):
    (held, _), weight = next(iter(task.evaluation()))
    seen = {tuple(row) for row in task.batch(0, 0, 16384)[0].tolist()}
    assert weight == len(held) and not seen & {tuple(row) for row in held.tolist()}


def test_the_final_loss_tells_good_optimizers_from_bad(task):
    good, slow = train(task, 0.01), train(task, 0.0003)
    assert good < 1.1 and slow > good + 0.4
