"""What a user may write in a config, and what is said about everything else."""

import pytest

from muonlab.errors import UsageError
from muonlab.study.config import ComparisonConfig, flattened, load_config, parse_setting, parse_variants, validated

FOUR = {"optimizer": "muon", "opt": {"ns_steps": 4}}


def test_defaults():
    config = validated({})
    assert config == ComparisonConfig() and config.optimizers == ("adamw", "muon")
    assert config.tune == ("opt.lr", "opt.weight_decay") and config.horizon_ratios == (0.5, 1.0, 2.0)


def test_lists_and_tuples_are_the_same():
    values = {"optimizers": ["sgd", "muon"], "baseline": "sgd", "horizon_ratios": [0.25, 1, 4]}
    assert validated(values) == validated({name: v if name == "baseline" else tuple(v) for name, v in values.items()})
    assert validated(values).horizon_ratios == (0.25, 1.0, 4.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimisers": ["adamw"]}, "unknown key 'optimisers': did you mean 'optimizers'?"),
        ({"max_run": 3}, "unknown key 'max_run': did you mean 'max_runs'?"),
        ({"horizon_tokens": -1}, "horizon_tokens: input should be greater than or equal to 1, got -1"),
        ({"horizon_tokens": "1000"}, "horizon_tokens: input should be a valid integer, got '1000'"),
        ({"horizon_tokens": True}, "horizon_tokens: input should be a valid integer, got True"),
        ({"batch_tokens": 1e3}, "batch_tokens: input should be a valid integer, got 1000.0"),
        ({"horizon_ratios": [0.5, 1.0, float("nan")]}, "horizon_ratios.2: input should be a finite number, got nan"),
        ({"horizon_ratios": [0.5, 1.0, float("inf")]}, "horizon_ratios.2: input should be a finite number, got inf"),
        ({"horizon_ratios": [0.5, "1.0", 2.0]}, "horizon_ratios.1: input should be a valid number, got '1.0'"),
        ({"optimizers": "adamw"}, "optimizers: input should be a valid tuple, got 'adamw'"),
        ({"optimizers": []}, "optimizers: name 1 at least, got none"),
        ({"optimizers": ["muon"]}, "the baseline 'adamw' must be one of --optimizers muon"),
        ({"optimizers": ["adamw", "muon", "adamw"]}, "optimizer 'adamw' is named twice"),
        ({"num_seeds": 1}, "num_seeds: input should be greater than or equal to 2, got 1"),
        ({"num_seeds": 101}, "num_seeds: input should be less than or equal to 100, got 101"),
        ({"first_seed": -3}, "first_seed: input should be greater than or equal to 0, got -3"),
        ({"tuning_seeds": 9}, "tuning_seeds must not exceed max_tuning_seeds"),
        ({"max_runs": 0}, "max_runs: input should be greater than or equal to 1, got 0"),
        ({"settings": ["opt.lr"]}, "settings: input should be a valid dictionary"),
        ({"task": 3}, "task: input should be a valid string, got 3"),
        ({"margin_nats": 0.0}, "margin_nats: input should be greater than 0, got 0.0"),
        ({"margin_nats": float("nan")}, "margin_nats: input should be a finite number"),
        ({"variants": [1]}, "variants: must be tables such as [variants.muon-4], got [1]"),
        ({"variants": {"x": 3}}, "variant 'x' names no optimizer: it needs optimizer = \"muon\" or another"),
        ({"variants": {"x": {"opt.ns_steps": 4}}}, "variant 'x' names no optimizer"),
        ({"variants": {"x": {"optimizer": "muon"}}}, "variant 'x' sets nothing: name muon itself, or set one of its"),
        ({"variants": {"a,b": FOUR}}, "variant 'a,b': a name has letters, digits and _ . + - after the first"),
        ({"variants": {"": FOUR}}, "variant '': a name has letters"),
    ],
)
def test_the_first_value_at_fault_is_named_in_one_line(values, message):
    with pytest.raises(UsageError) as error:
        validated(values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_config_can_not_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        validated({}).max_runs = 3


def test_the_key_of_a_study_depends_on_every_field():
    changes = {
        "task": "x.py:T", "data": ("a.txt",), "optimizers": ("adamw", "sgd"), "baseline": "muon", "horizon_tokens": 5,
        "batch_tokens": 1, "tune": ("opt.lr",), "horizon_ratios": (0.5, 1.0, 3.0), "num_seeds": 6, "first_seed": 1,
        "tuning_seeds": 4, "max_tuning_seeds": 9, "max_runs": 81, "device": "cuda", "settings": {"clip": 0.0},
        "variants": {"four": {"optimizer": "muon", "opt.ns_steps": 4}}, "margin_nats": 0.01,
    }  # fmt: skip
    assert set(changes) == set(ComparisonConfig.model_fields)
    keys = {validated({name: value}).key for name, value in changes.items()}
    assert len(keys) == len(changes) and validated({}).key not in keys
    assert validated({}).key == validated({"max_runs": 80}).key


def test_a_study_of_before_variants_and_margins_keeps_its_key():
    assert validated({}).key == "b705b552fc6bb46fbd884c456c06e2a83da3e1130692849396137a9748308431"


def test_load_config_reads_toml(tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(
        "\ufeffoptimizers = ['adamw', 'muon']\r\nmax_runs = 40\r\n[settings.opt]\r\nlr = 1e-3\r\n".encode()
    )
    values = load_config(path)
    assert values == {"optimizers": ["adamw", "muon"], "max_runs": 40, "settings": {"opt": {"lr": 1e-3}}}
    assert validated({**values, "settings": flattened(values["settings"])}).settings == {"opt.lr": 1e-3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"max_runs = 40\ntune = [,]\n", "line 2, column 9"),
        (b"max_runs = 40\nmax_runs = 41\n", "line 2"),
        (b"max_runs\n", "line 1, column 9"),
        (b"task = '\xff'\n", "0xff"),
        (b"\t[settings\n", "line 1"),
    ],
)
def test_load_config_says_where_it_stumbled(tmp_path, content, message):
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot read config") as error:
        load_config(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_load_config_of_no_file(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="directory"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("opt.lr=1e-3", "opt.lr", 0.001),
        (" batch_tokens = 2048 ", "batch_tokens", 2048),
        ("compile=true", "compile", True),
        ("compile=True", "compile", "True"),  # not TOML: refused where the value is used
        ("schedule.kind=wsd", "schedule.kind", "wsd"),
        ("schedule.kind='wsd'", "schedule.kind", "wsd"),
        ("task.x=[1, 2]", "task.x", [1, 2]),
        ("task.path=a=b", "task.path", "a=b"),
        ("opt.lr=-1", "opt.lr", -1),
    ],
)
def test_parse_setting(text, name, value):
    parsed = parse_setting(text)
    assert parsed == (name, value) and type(parsed[1]) is type(value)


@pytest.mark.parametrize("text", ["opt.lr", "=1", "opt.lr=", "", " = "])
def test_a_setting_is_name_and_value(text):
    with pytest.raises(UsageError, match="--set wants NAME=VALUE, got"):
        parse_setting(text)


def test_flattened():
    nested = {"opt": {"lr": 0.1, "ns_coefficients": [1, 2, 3]}, "aux.lr_ratio": 0.3, "task": {"a": {"b": "x"}}, "e": {}}
    assert flattened(nested) == {
        "opt.lr": 0.1, "opt.ns_coefficients": (1, 2, 3), "aux.lr_ratio": 0.3, "task.a.b": "x",
    }  # fmt: skip


def test_variants_are_flat_tables_and_join_the_default_optimizers():
    config = validated({"variants": {"muon-4": FOUR}})
    assert config.optimizers == ("adamw", "muon", "muon-4")
    assert (config.optimizer("muon-4"), config.fixed("muon-4")) == ("muon", {"opt.ns_steps": 4})
    assert (config.optimizer("adamw"), config.fixed("adamw")) == ("adamw", {})
    named = validated({"variants": {"muon-4": FOUR}, "optimizers": ["muon-4", "sgd"], "baseline": "muon-4"})
    assert named.optimizers == ("muon-4", "sgd")


def test_a_variant_is_written_on_one_line():
    texts = [
        "muon-4=muon,opt.ns_steps=4",
        "long = muon , opt.nesterov = false, opt.ns_coefficients=[[4, -7, 3], [3, -4, 2]]",
    ]
    assert parse_variants(texts) == {
        "muon-4": {"optimizer": "muon", "opt.ns_steps": 4},
        "long": {"optimizer": "muon", "opt.nesterov": False, "opt.ns_coefficients": [[4, -7, 3], [3, -4, 2]]},
    }
    assert parse_variants(["x=muon,opt.polar=exact"])["x"]["opt.polar"] == "exact"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["muon"], "--variant wants NAME=OPTIMIZER,KEY=VALUE,..., got 'muon'"),
        (["=muon,opt.lr=1"], "--variant wants NAME=OPTIMIZER"),
        (["x=,opt.lr=1"], "--variant wants NAME=OPTIMIZER"),
        (["x=muon,opt.ns_steps="], "--variant wants NAME=VALUE, got 'opt.ns_steps='"),
        (["x=muon,opt.ns_steps=4,opt.ns_steps=5"], "variant 'x' sets opt.ns_steps twice"),
        (["x=muon,optimizer=sgd"], "variant 'x' sets optimizer twice"),
        (["x=muon,opt.ns_steps=4", "x=muon,opt.ns_steps=5"], "variant 'x' is given twice"),
    ],
)
def test_a_variant_that_can_not_be_read(texts, message):
    with pytest.raises(UsageError) as error:
        parse_variants(texts)
    assert message in str(error.value) and "\n" not in str(error.value)
