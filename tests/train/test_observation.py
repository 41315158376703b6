"""What a rule observes beside the gradient is fed by the trainer, counted, and survives an interruption."""

import pytest
import torch

from muonlab.errors import UsageError
from muonlab.records.record import same_result
from muonlab.tasks.text import Text
from muonlab.train.checkpoint import Checkpoints
from muonlab.train.curves import typical
from muonlab.train.loop import Interrupted, train

EVERY_FOURTH = {"opt.lr": 0.01, "opt.observe_every": 4}


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch of each call of Text.curvature_loss, by its first token."""
    seen, own = [], Text.curvature_loss

    def counted(self, model, batch):
        seen.append(batch)
        return own(self, model, batch)

    monkeypatch.setattr(Text, "curvature_loss", counted)
    return seen


def test_curvature_is_fed_on_schedule_from_the_batch_of_the_step_and_its_flops_are_counted(
    make_text, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = calls_of(monkeypatch)
    record = train(make_text("sophia", hyperparameters=EVERY_FOURTH))
    plain = train(make_text("adamw"))
    assert len(seen) == 4 and torch.equal(seen[1], Text(seq_len=32).batch(0, 4 * 8, 8))
    assert record.outcome == "ok" and record.tokens == plain.tokens
    assert record.flops == pytest.approx(plain.flops * (16 + 4) / 16)


def test_the_observation_is_in_the_numbers(make_text, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = train(make_text("sophia", hyperparameters=EVERY_FOURTH))
    monkeypatch.setattr(Text, "curvature_loss", Text.loss)
    assert train(make_text("sophia", hyperparameters=EVERY_FOURTH)).final_loss != fed.final_loss


def test_labels_are_drawn_from_the_model(make_text) -> None:
    """Averaged over draws, the loss is the entropy of the predictions."""
    task = Text(width=16, depth=1, seq_len=32)
    torch.manual_seed(0)
    model, batch = task.build(), task.batch(0, 0, 64)
    with torch.no_grad():
        model.head.weight.mul_(20)  # sure of itself, and wrong
        logits = model(batch[:, :-1])
        entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
        drawn = torch.stack([task.curvature_loss(model, batch) for _ in range(20)]).mean()
        data = task.loss(model, batch)
    assert drawn == pytest.approx(entropy.item(), abs=0.02) and data > drawn + 0.5


def test_micro_batches_give_the_same_curvature_up_to_the_draw(make_text, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of(monkeypatch)
    train(make_text("sophia", hyperparameters=EVERY_FOURTH, micro_batch_tokens=128))
    assert [len(batch) for batch in seen] == [4] * 8


def test_resumed_is_not_interrupted(make_text, tmp_path) -> None:
    spec = make_text("sophia", hyperparameters=EVERY_FOURTH)
    asked = iter(range(100))
    checkpoints = Checkpoints(tmp_path, seconds=1e9)
    with pytest.raises(Interrupted):
        train(spec, checkpoints=checkpoints, should_stop=lambda: next(asked) == 6)
    record = train(spec, checkpoints=checkpoints)
    assert same_result(record, train(spec)) and record.flops == train(spec).flops


def test_a_task_without_curvature_is_refused_in_one_line(make_spec) -> None:
    class Plain:
        tokens_per_sample = 1

        def build(self):
            return torch.nn.Linear(3, 3)

        def batch(self, seed, start, count):
            return torch.ones(count, 3)

        def loss(self, model, batch):
            return model(batch).square().mean()

        def evaluation(self):
            yield torch.ones(2, 3), 2

    with pytest.raises(UsageError, match=r"needs a method curvature_loss\(model, batch\)"):
        train(make_spec(optimizer="sophia"), task=Plain())


def test_the_time_of_a_step_counts_what_recurs_and_not_what_disturbs_once() -> None:
    every_tenth = [1.0] * 9 + [11.0]
    assert typical(every_tenth * 6) == pytest.approx(2.0)
    assert typical([1.0] * 55 + [100.0] + [1.0] * 14) == pytest.approx(1.0)
    assert typical([1.0, 2.0, 9.0]) == 2.0 and typical([]) is None
