"""The worked example of docs/features.md: a model of transformers, trained twice, looked at, and studied."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from muonlab.train.features import hidden_states, sample_of

pytest.importorskip("transformers", reason="pip install 'muonlab[integrations]'")

EXAMPLE = Path(__file__).parents[2] / "examples" / "huggingface.py"
LAYERS = ["net.transformer.h.0", "net.transformer.h.1"]


def features(*arguments: str) -> str:
    """What `muonlab features` of the example prints."""
    command = [sys.executable, "-m", "muonlab", "features", f"{EXAMPLE}:Task", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the example writes."""
    folder = tmp_path_factory.mktemp("huggingface")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return folder


def test_checkpoints_are_looked_at(checkpoints):
    files = [checkpoints / name for name in ("muon.pt", "adamw.pt")]
    given = [part for file in files for part in ("--checkpoint", str(file))]
    found = json.loads(features(*given, "--json"))
    assert [row["layer"] for row in found["layers"]] == 2 * LAYERS
    assert all(row["margin_normalised"] is not None for row in found["layers"]) and not found["notes"]
    rises = [row["rise"] for row in found["corruptions"] if row["severity"]]
    assert len(rises) == 10 and min(rises) > 0
    assert all(0 < row["cka"] < 1 for row in found["cka"])


def test_hidden_states_are_those_of_transformers(checkpoints):
    task = runpy.run_path(str(EXAMPLE))["Task"]()
    model = task.build()
    model.load_state_dict(torch.load(checkpoints / "muon.pt"))
    sample = sample_of(task)
    with torch.no_grad():
        theirs = model.eval().net(sample.inputs, output_hidden_states=True).hidden_states
    ours = hidden_states(model, sample)
    kept = (sample.labels >= 0).flatten()
    first = theirs[1].flatten(0, 1)[kept]  # theirs[0] are embeddings, and the last is normalised
    assert torch.equal(torch.from_numpy(ours[LAYERS[0]]).float(), first)


def test_it_is_a_study():
    assert "runs" in features("--tokens", "20480", "--batch-tokens", "1024", "--dry-run")
