"""A run with a base model: what is multiplied, and that nothing else changes."""

from dataclasses import replace

import pytest
import torch

from muonlab.errors import UsageError
from muonlab.records.record import same_result
from muonlab.records.watch import Watch
from muonlab.study.config import validated
from muonlab.study.plan import conventions, plan_comparison
from muonlab.tasks.text import Text
from muonlab.train.loop import ALONE, _Run, train


def prepared(spec):
    return _Run(spec, Text(**spec.task_options), ALONE, Watch())


def lrs(run):
    return {name: group["lr"] for group in run.optimizer.param_groups for name in group["param_names"]}


def test_a_run_without_a_base_is_the_run_it_was(make_text):
    plain = make_text()
    record = train(plain)
    for idle in ({"parametrization": "mup"}, {"base": {"width": 8}}, {"parametrization": "mup", "base": {"width": 16}}):
        spec = replace(plain, **idle)
        assert spec.key == plain.key and same_result(replace(train(spec), spec=plain), record)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_base_that_is_no_smaller_changes_no_bit(make_text, optimizer):
    plain = make_text(optimizer)
    same = plain.set({"parametrization": "spectral", "base.seq_len": 16})
    assert same.is_parametrized
    states = []
    for spec in (plain, same):
        prepared(spec)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert train(same).train_loss == train(plain).train_loss


def test_width_and_depth_reach_model_and_optimizer(make_text):
    plain = make_text("muon", task_options={"width": 64, "depth": 4, "mlp_width": 128})
    spec = plain.set({"parametrization": "mup", "base.width": 16, "base.depth": 2, "base.mlp_width": 32})
    run, before = prepared(spec), prepared(plain)
    assert lrs(run)["blocks.3.attention.q.weight"] == pytest.approx(lrs(before)["blocks.3.attention.q.weight"] / 4)
    assert lrs(run)["embed.weight"] == lrs(before)["embed.weight"]
    x = torch.randn(2, 64)
    out = run.model.blocks[3].attention.o
    torch.testing.assert_close(out(x), x @ out.weight.T / 2)
    torch.testing.assert_close(run.model.blocks[3].attention.q(x), x @ run.model.blocks[3].attention.q.weight.T)
    first, second = train(spec), train(spec)
    assert same_result(first, second) and first.final_loss != train(plain).final_loss


def test_a_plan_says_what_it_cannot_do_and_what_it_does():
    settings = {"task.width": 16, "task.depth": 1, "task.seq_len": 32, "parametrization": "spectral", "base.width": 8}

    def planned(*optimizers):
        asked = {"horizon_tokens": 65_536, "batch_tokens": 1024, "settings": settings}
        return plan_comparison(validated({**asked, "optimizers": optimizers}))

    base = planned("adamw", "muon").bases["muon"]
    assert conventions(base)["parametrization"] == 'spectral, base {"width":8}'
    with pytest.raises(UsageError, match='"spectral" says nothing of kron'):
        planned("adamw", "kron")
