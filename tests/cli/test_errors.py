"""A user's mistake is one line that names it and says what to do: nothing is run, nothing is made, nothing lost."""

import struct
import subprocess
import sys

import pytest

SMALL = ["--tokens", "2048", "--batch-tokens", "128"]
HEADER = struct.pack("<3i", 20240520, 1, 500) + bytes(1012)
FILES = {
    "empty.txt": b"",
    "short.txt": b"hello",
    "zeros.txt": bytes(100),
    "magic.bin": struct.pack("<3i", 7, 1, 500) + bytes(2012),
    "cut.bin": HEADER + bytes(100),
    "odd.bin": HEADER + bytes(1001),
    "bad.toml": b"tune = [\n",
    "latin.toml": b"task = '\xe9'\n",
    "twice.toml": b"num_seeds = 3\nnum_seeds = 4\n",
    "key.toml": b"optimizer = 'muon'\n",
    "type.toml": b"num_seeds = 'many'\n",
    "quoted.toml": b"num_seeds = '5'\n",
    "truth.toml": b"num_seeds = true\n",
    "nan.toml": b"horizon_ratios = [nan, 1.0, 2.0]\n",
    "negative.toml": b"horizon_ratios = [-1.0, 1.0, 2.0]\n",
    "table.toml": b"settings = 3\n",
    "list.toml": b"optimizers = 3\n",
    "nested.toml": b"[settings.opt]\nlrr = 3\n",
    "variant.toml": b"[variants.four]\nopt.ns_steps = 4\n",
    "variants.toml": b"variants = 3\n",
    "raises.py": b"raise RuntimeError('on import')\n",
    "syntax.py": b"class Task:\n  def\n",
    "nothing.py": b"class Task: pass\n",
}
TEXT = ["text", "--data", "text.txt", *SMALL]
MISTAKES = {  # what is typed: what the line says
    "train txt": "unknown task 'txt': did you mean 'text'?",
    "train nowhere.py:Task": "no such file",
    "train nowhere.thing:Task": "no module 'nowhere'",
    "train raises.py:Task": "importing raises.py failed: {}/raises.py, line 1: RuntimeError: on import",
    "train syntax.py:Task": "syntax.py, line 2: SyntaxError",
    "train nothing.py:Task": "it lacks build(), batch(), loss(), evaluation()",
    "train nothing.py:Tsk": "did you mean 'Task'?",
    "train TEXT --optimizer muno": "unknown optimizer 'muno': did you mean 'muon'?",
    "train TEXT --set opt.lrr=0.1": "unknown key 'opt.lrr': did you mean 'opt.lr'?",
    "train TEXT --set task.widht=8": "unknown task option 'widht': did you mean 'width'?",
    "train TEXT --set opt.lr=-1": "opt.lr: ",
    "train TEXT --set opt.lr=nan": "opt.lr: must be a finite number, got nan",
    "train TEXT --set opt.lr=inf": "opt.lr: must be a finite number, got inf",
    "train TEXT --set opt.lr=fast": "opt.lr: ",
    "train TEXT --set opt.momentum=1.5": "opt.momentum: ",
    "train TEXT --set opt.nesterov=maybe": "opt.nesterov: ",
    "train TEXT --set clip=-1": "clip must be 0 (none) or positive, got -1",
    "train TEXT --set clip=nan": "clip must be a finite number",
    "train TEXT --set schedule.kind=wds": "unknown schedule.kind 'wds': did you mean 'wsd'?",
    "train TEXT --set schedule.warmup_fraction=2": "schedule.warmup_fraction must lie in [0, 1], got 2",
    "train TEXT --set task.width=0": "width must be a whole number of at least 1, got 0",
    "train TEXT --set task.tied=False": "tied must be true or false, got 'False'",
    "train TEXT --set x": "--set wants NAME=VALUE, got 'x'",
    "train TEXT --set =3": "--set wants NAME=VALUE, got '=3'",
    "train TEXT --set batch_tokens=1e3": "batch_tokens: input should be a valid integer",
    "train TEXT --precision fp16": "unknown precision 'fp16': did you mean 'bf16'?",
    "train TEXT --device tpu": "unknown device 'tpu': did you mean 'cpu'?",
    "train text --tokens 2048 --batch-tokens 100": "must be a multiple of one sample, 64 tokens: try 128",
    "train text --tokens 2048 --batch-tokens 2048": "is only 1 steps: raise it (--tokens) to at least 16384, 8 steps",
    "train text --data text.txt --tokens 819200 --batch-tokens 8192": "exceeds the training split of 7200",
    "train text --data empty.txt": "empty.txt: the text is empty",
    "train text --data short.txt": "give more text or lower task.seq_len",
    "train text --data zeros.txt": "not a text file",
    "train text --data magic.bin": "magic.bin: wrong magic 7, want 20240520",
    "train text --data cut.bin": "cut.bin: truncated: the header counts 500 tokens, the file holds 50",
    "train text --data odd.bin": "is an odd size",
    "train text --data nowhere.txt": "no such file or directory: {}/nowhere.txt",
    "train text --data text.txt --data magic.bin": "data mixes 1 .bin shards with 1 text files",
    "compare TEXT --optimizers adamw": "at least two optimizers",
    "compare TEXT --optimizers adamw,adamw": "optimizer 'adamw' is named twice",
    "compare TEXT --optimizers adamw,muno": "did you mean 'muon'?",
    "compare TEXT --optimizers ,": "optimizers: ",
    "compare TEXT --baseline sgd": "the baseline 'sgd' must be one of --optimizers adamw,muon",
    "compare TEXT --variant four": "--variant wants NAME=OPTIMIZER,KEY=VALUE,..., got 'four'",
    "compare TEXT --variant four=muno,opt.ns_steps=4": "unknown optimizer 'muno': did you mean 'muon'?",
    "compare TEXT --variant four=muon": "variant 'four' sets nothing",
    "compare TEXT --variant four=muon,opt.ns_step=4": "in variant 'four' 'opt.ns_step': did you mean 'opt.ns_steps'?",
    "compare TEXT --variant four=muon,opt.polar=exakt": "opt.polar: unknown polar method 'exakt'",
    "compare TEXT --variant muon=muon,opt.ns_steps=4": "variant 'muon' has the name of an optimizer",
    "compare TEXT --optimizers adamw,muon --variant four=muon,opt.ns_steps=4": (
        "variant 'four' is not among the optimizers adamw,muon: add it there"
    ),
    "compare TEXT --config variant.toml": "variant 'four' names no optimizer",
    "compare TEXT --config variants.toml --variant four=muon,opt.ns_steps=4": "variants: must be tables such as",
    "compare TEXT --margin 0": "margin_nats: input should be greater than 0, got 0.0",
    "compare TEXT --margin nan": "margin_nats: input should be a finite number",
    "compare TEXT --tune opt.wd,opt.lr": "unknown coordinate to tune 'opt.wd'",
    "compare TEXT --tune opt.weight_decay": "--tune must name opt.lr",
    "compare TEXT --max-runs 3": "max_runs 3 is below",
    "compare TEXT --config nowhere.toml": "cannot read config nowhere.toml: No such file or directory",
    "compare TEXT --config bad.toml": "cannot read config bad.toml: ",
    "compare TEXT --config latin.toml": "cannot read config latin.toml: 'utf-8' codec can't decode",
    "compare TEXT --config twice.toml": "(at line 2, column ",
    "compare TEXT --config key.toml": "unknown key 'optimizer': did you mean 'optimizers'?",
    "compare TEXT --config type.toml": "num_seeds: input should be a valid integer",
    "compare TEXT --config quoted.toml": "num_seeds: input should be a valid integer",
    "compare TEXT --config truth.toml": "num_seeds: input should be a valid integer",
    "compare TEXT --config nan.toml": "horizon_ratios.0: ",
    "compare TEXT --config negative.toml": "horizon_ratios must be positive",
    "compare TEXT --config table.toml": "settings: must be a table of dotted names, got 3",
    "compare TEXT --config list.toml": "optimizers: ",
    "compare TEXT --config nested.toml": "unknown key 'opt.lrr': did you mean 'opt.lr'?",
    "compare TEXT --out nowhere/report.html": "cannot write report nowhere/report.html: there is no folder",
    "compare TEXT --out .": "cannot write report .: it is a folder",
    "compare TEXT --store nowhere/lab.db": "directory {}/nowhere of store nowhere/lab.db does not exist",
    "compare TEXT --store .": "store . is a directory",
    "compare TEXT --store mysql://host/lab": "unsupported store mysql://",
    "compare TEXT --store text.txt": "store text.txt is not a SQLite database",
    "tune TEXT --optimizer adamw --tune opt.lrr": "unknown coordinate to tune 'opt.lrr': did you mean 'opt.lr'?",
    "runs list --store text.txt": "store text.txt is not a SQLite database",
    "runs list --store text.txt --outcome okay": "unknown outcome 'okay': did you mean 'ok'?",
    "runs export runs.parquet": "its name must end with .jsonl or .csv",
    "runs import nowhere.jsonl": "cannot read nowhere.jsonl: No such file or directory",
    "runs import text.txt": "text.txt",
    "report --store nowhere.db": "store nowhere.db does not exist",
    "compare": "a comparison needs a TASK, such as text",
    "ladder text": "a ladder needs at least three sizes",
    "ladder text --sizes 16x2,32x2,big": "a size is WIDTHxDEPTH",
    "ladder text --sizes 16,32,64 --ratios 1,2": "three ratios",
    "ladder text --sizes 16,32,64 --ratios 1,2,x": "--ratios wants numbers",
    "ladder text --sizes 16x1,16x1,24x1,32x1": "size 16x1 is given twice in --sizes: leave one out",
    "ladder text --sizes 16,24,32 --ratios 1,2,2,4": "ratio 2 is given twice: leave one out",
    "ladder text --sizes 16,24,32 --batch-tokens 65536": "size 16 at ratio 1 is ",
    "ladder text --sizes 16,32,032": "have the same number of parameters",
    "batch text": "a batch study needs at least three batch sizes, such as --batches",
    "batch text --batches 64,128": "at least three batch sizes",
    "batch text --batches 64,128,x": "--batches wants numbers with commas between, got '64,128,x'",
    "batch text --batches 64,128,256.5": "--batches wants whole numbers",
    "batch text --batches 64,128,128": "batch 128 is given twice in --batches: leave one out",
    "batch text --batches 64,128,200": "batch 200 must be a multiple of one sample, 64 tokens: try 192",
    "batch text --batches 64,128,0": "batches must be at least 1",
    "batch text --batches 64,128,65536 --tokens 9999": "batch 65536 leaves fewer than 8 steps in the longest run",
    "batch text --batches 64,128,256 --targets 2.5,-1": "targets must be losses above 0",
    "batch text --batches 64,128,256 --targets low": "--targets wants numbers",
    "batch text --batches 64,128,256 --set schedule.kind=linear": "lr must not decay: leave schedule.kind linear out",
    "batch text --batches 64,128,256 --set seed=3": "name the first with --seed",
    "batch text --batches 64,128,256 --retune opt.lrr": "unknown coordinate to tune 'opt.lrr': did you mean 'opt.lr'?",
    "batch text --batches 64,128,256 --set averaging=1": "averaging must lie in [0, 1), got 1",
    "batch text --batches 64,128,256 --devices 0": "devices must be at least 1",
    "batch text --batches 64,128,256 --bandwidth 0": "bandwidth: ",
    "batch text --predict --batches 64,128,256 --tokens 1000": "a pilot of 128 tokens a step needs a budget of 131,072",
}
MISTYPED = {  # what typer itself finds out
    "": "Usage",
    "comprae text": "No such command 'comprae'",
    "ladder": "Missing argument 'TASK'",
    "compare text --optimizer adamw": "--optimizers",
    "train text --tokens many": "'--tokens'",
    "train text --tokens -5": "'--tokens'",
    "train text --seed -1": "'--seed'",
    "compare text --seeds 1": "'--seeds'",
    "runs": "Usage",
    "runs list --limit 0": "'--limit'",
}


@pytest.fixture(scope="module")
def messy(tmp_path_factory, text):
    """A folder full of files that are not what they should be."""
    from program import Program

    folder = tmp_path_factory.mktemp("messy")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "text.txt").write_text(text)
    return Program(folder)


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line(messy, typed):
    words = [part for word in typed.split() for part in (TEXT if word == "TEXT" else [word])]
    before = snapshot(messy.folder)
    said = messy(*words, "--json").said() if "runs" not in words or "list" in words else messy(*words).said()
    assert MISTAKES[typed].format(messy.folder) in said
    assert snapshot(messy.folder) == before


@pytest.mark.parametrize("typed", MISTYPED)
def test_what_is_mistyped_is_exit_code_2(messy, typed):
    done = messy(*typed.split())
    assert done.code == 2 and "Traceback" not in done.err and MISTYPED[typed] in done.out + done.err


def test_names_that_are_no_text_are_one_line(messy):
    for name in ("\udce9.txt", "x" * 300, "a\nb.txt", "../..", "--", "\N{RIGHT-TO-LEFT OVERRIDE}"):
        assert messy("train", "text", "--data", name, *SMALL).said()


def test_a_missing_package_is_one_line():
    code = "import sys; sys.modules['typer'] = None; from muonlab.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "muonlab: the laboratory needs the package typer: pip install 'muonlab[lab]'\n"
