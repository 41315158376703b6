"""Optimizers: drop-in classes for torch.optim, and the rules and routing they are made of.

>>> import muonlab.optim
>>> sorted(muonlab.optim.__all__)[:3]
['ADOPT', 'ADOPTRule', 'AdEMAMix']
"""

from muonlab.optim.adam import (
    ADOPT,
    AdamMini,
    AdamMiniRule,
    AdamW,
    AdamWRule,
    AdEMAMix,
    AdEMAMixRule,
    ADOPTRule,
    CautiousAdamW,
    CautiousAdamWRule,
    NAdamW,
    NAdamWRule,
)
from muonlab.optim.engine import Engine
from muonlab.optim.hyperball import AdamHyperball, AdamHyperballRule, MuonHyperball, MuonHyperballRule
from muonlab.optim.interchange import convert
from muonlab.optim.kron import Kron, KronRule
from muonlab.optim.lion import Lion, LionRule, Signum, SignumRule
from muonlab.optim.mars import MARS, MARSRule
from muonlab.optim.muon import Muon, MuonRule
from muonlab.optim.normuon import AdaMuon, AdaMuonRule, NorMuon, NorMuonRule
from muonlab.optim.orthogonal import OrthogonalRule
from muonlab.optim.orthogonal_sgdm import OrthogonalSGDM, OrthogonalSGDMRule
from muonlab.optim.parametrization import Parametrization
from muonlab.optim.parametrize import param_groups, parametrize
from muonlab.optim.qk_clip import AttentionWeights, qk_clip_, register_qk_clip
from muonlab.optim.routing import Route, route
from muonlab.optim.rule import Hyperparameter, Rule, StateField, hp
from muonlab.optim.scion import Scion, ScionRule
from muonlab.optim.sgd import SGD, SGDRule
from muonlab.optim.shampoo import Shampoo, ShampooRule
from muonlab.optim.soap import SOAP, SOAPMuon, SOAPMuonRule, SOAPRule
from muonlab.optim.sophia import Sophia, SophiaRule

__all__ = [
    "ADOPT",
    "MARS",
    "SGD",
    "SOAP",
    "ADOPTRule",
    "AdEMAMix",
    "AdEMAMixRule",
    "AdaMuon",
    "AdaMuonRule",
    "AdamHyperball",
    "AdamHyperballRule",
    "AdamMini",
    "AdamMiniRule",
    "AdamW",
    "AdamWRule",
    "AttentionWeights",
    "CautiousAdamW",
    "CautiousAdamWRule",
    "Engine",
    "Hyperparameter",
    "Kron",
    "KronRule",
    "Lion",
    "LionRule",
    "MARSRule",
    "Muon",
    "MuonHyperball",
    "MuonHyperballRule",
    "MuonRule",
    "NAdamW",
    "NAdamWRule",
    "NorMuon",
    "NorMuonRule",
    "OrthogonalRule",
    "OrthogonalSGDM",
    "OrthogonalSGDMRule",
    "Parametrization",
    "Route",
    "Rule",
    "SGDRule",
    "SOAPMuon",
    "SOAPMuonRule",
    "SOAPRule",
    "Scion",
    "ScionRule",
    "Shampoo",
    "ShampooRule",
    "Signum",
    "SignumRule",
    "Sophia",
    "SophiaRule",
    "StateField",
    "convert",
    "hp",
    "param_groups",
    "parametrize",
    "qk_clip_",
    "register_qk_clip",
    "route",
]
