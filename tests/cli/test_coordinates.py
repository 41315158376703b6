"""`muonlab train --coordinates`: measured, shown, kept, and refused in one line."""

import pytest

RUN = ("train", "text", "--data=text.txt", "--optimizer=muon", "--tokens=1024", "--batch-tokens=128", "--no-progress")


def test_what_the_probe_saw_is_shown_and_kept(program, tiny):
    shown = program(*RUN, *tiny, "--coordinates=1,8", environment={"COLUMNS": "80"})
    assert shown.code == 0 and "blocks.0.mlp.down" in shown.out and "update, RMS -> RMS" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    again = program(*RUN, *tiny, "--coordinates=8", "--json").json
    assert again["runs_executed"] == 0 and again["probes"]["change.head"][0] == [1, 8]
    more = program(*RUN, *tiny, "--coordinates=4", "--json").json
    assert more["runs_executed"] == 1 and more["final_loss"] == again["final_loss"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("9", "--coordinates 9 is beyond the run's 8 steps"),
        ("0", "counted from 1"),
        ("1.5", "--coordinates wants whole numbers"),
        ("x", "--coordinates wants numbers"),
    ],
)
def test_steps_that_the_run_does_not_have(program, tiny, steps, said):
    assert said in program(*RUN, *tiny, f"--coordinates={steps}").said()


def test_steps_are_looked_at_before_the_length_of_the_run(program, tiny):
    said = program(*RUN, *tiny, "--tokens=512", "--coordinates=4,8,9").said()
    assert "--coordinates 8,9 is beyond the run's 4 steps" in said
