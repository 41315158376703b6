"""The contract of a rule and of its optimizer, clause by clause, on every rule. A new rule is one more row."""

import pytest
import torch

from muonlab.optim import (
    AdamHyperballRule,
    AdamMiniRule,
    AdaMuonRule,
    AdamWRule,
    AdEMAMixRule,
    ADOPTRule,
    CautiousAdamWRule,
    KronRule,
    LionRule,
    MARSRule,
    MuonHyperballRule,
    MuonRule,
    NAdamWRule,
    NorMuonRule,
    OrthogonalSGDMRule,
    Rule,
    ScionRule,
    SGDRule,
    ShampooRule,
    SignumRule,
    SOAPMuonRule,
    SOAPRule,
    SophiaRule,
    StateField,
    catalog,
    hp,
)
from muonlab.testing import first_state, run
from muonlab.testing.optimizers import CLAUSES as OF_OPTIMIZERS
from muonlab.testing.optimizers import Subject
from muonlab.testing.rules import CLAUSES as OF_RULES
from muonlab.testing.rules import gradients

FINE = {"polar_dtype": "float64"}
RULES = {
    "sgd": SGDRule(),
    "sgd-momentum": SGDRule(momentum=0.9, dampening=0.3),
    "sgd-nesterov": SGDRule(momentum=0.9, nesterov=True),
    "signum": SignumRule(),
    "signum-nesterov": SignumRule(nesterov=True),
    "lion": LionRule(),
    "adamw": AdamWRule(betas=(0.8, 0.9)),
    "nadamw": NAdamWRule(),
    "nadamw-warm": NAdamWRule(momentum_decay=4e-3),
    "cautious": CautiousAdamWRule(),
    "adam_mini": AdamMiniRule(),
    "adopt": ADOPTRule(),
    "ademamix": AdEMAMixRule(),
    "ademamix-warm": AdEMAMixRule(mix_warmup_steps=5),
    "mars": MARSRule(),
    "sophia": SophiaRule(),
    "muon": MuonRule(**FINE),
    "muon-plain": MuonRule(**FINE, nesterov=False, momentum=0.5),
    "muon-spectral": MuonRule(**FINE, adjust_lr_fn="spectral", ns_coefficients="polar_express"),
    "muon-heavy-ball": MuonRule(**FINE, momentum_form="heavy_ball", momentum=0.8),
    "muon-heavy-ball-plain": MuonRule(**FINE, momentum_form="heavy_ball", nesterov=False),
    "muon-exact": MuonRule(polar="exact", adjust_lr_fn="match_rms_adamw"),
    "muon-bf16": MuonRule(),
    "normuon": NorMuonRule(**FINE),
    "adamuon": AdaMuonRule(**FINE),
    "orthogonal_sgdm": OrthogonalSGDMRule(**FINE),
    "orthogonal_sgdm-paper": OrthogonalSGDMRule(polar="exact", momentum_form="heavy_ball"),
    "scion": ScionRule(**FINE),
    "muon_hyperball": MuonHyperballRule(**FINE),
    "adam_hyperball": AdamHyperballRule(),
    "soap": SOAPRule(precondition_frequency=2),
    "soap_muon": SOAPMuonRule(**FINE, precondition_frequency=2),
    "shampoo": ShampooRule(precondition_frequency=2),
    "shampoo-sum": ShampooRule(precondition_frequency=1, beta2=1.0, nesterov=True),
    "kron": KronRule(),
    "kron-rarely": KronRule(update_flat_steps=1, update_probability=0.5),
}

each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


@pytest.mark.parametrize("clause", OF_RULES.values(), ids=OF_RULES.keys())
@each_rule
def test_rule(rule: Rule, clause) -> None:
    clause(rule)


@pytest.mark.parametrize("clause", OF_OPTIMIZERS.values(), ids=OF_OPTIMIZERS.keys())
@each_rule
def test_optimizer(rule: Rule, clause) -> None:
    clause(Subject(catalog.optimizer_class(type(rule)), rule))


def test_every_optimizer_has_a_row() -> None:
    assert {rule.name for rule in RULES.values()} == set(catalog.names())


def test_muon_at_momentum_zero_is_the_polar_factor() -> None:
    g = gradients((6, 6), 1)[0]
    u, _, vh = torch.linalg.svd(g)
    for nesterov in (False, True):
        rule = MuonRule(momentum=0.0, nesterov=nesterov, polar="exact")
        torch.testing.assert_close(run(rule, g, g, first_state(rule, g), 1), u @ vh)


def test_muon_momentum_is_an_average_with_a_nesterov_look_ahead() -> None:
    first, second = gradients((4, 6), 2)
    m = 0.1 * 0.9 * first + 0.1 * second
    for nesterov, expected in ((False, m), (True, 0.1 * second + 0.9 * m)):
        rule = MuonRule(momentum=0.9, nesterov=nesterov)
        state = first_state(rule, first)
        rule.local(first, first, state, 1)
        torch.testing.assert_close(rule.local(second, first, state, 2), expected)
        torch.testing.assert_close(state["momentum_buffer"], m)


def test_a_rule_is_final_and_frozen() -> None:
    with pytest.raises(TypeError, match="final"):
        type("Variant", (MuonRule,), {})
    with pytest.raises(AttributeError):
        MuonRule().momentum = 0.5


def test_state_layouts() -> None:
    assert StateField("row").shape_for((4, 3, 3), (4, 9)) == (4, 1)
    assert StateField("scalar").shape_for((4, 9), (4, 9)) == ()
    assert StateField("matrix", "matrix", lambda s: (s[-2], s[-2])).shape_for((4, 9), (4, 9)) == (4, 4)
    assert StateField("block").shape_for((4, 9), (4, 9), 2) == (2, 1)
    for layout, stage in (("vec", "local"), ("param", "later")):
        with pytest.raises(TypeError, match=r"unknown (layout|stage)"):
            StateField(layout, stage)
    for layout, shape in (("matrix", None), ("row", lambda s: s)):
        with pytest.raises(TypeError):
            StateField(layout, shape=shape)
    assert hp(1.0).metadata["hp"].kind is float
