"""Optimizers: drop-in classes for torch.optim, and the rules and routing they are made of.

>>> import muonlab.optim
>>> sorted(muonlab.optim.__all__)[:3]
['AdamW', 'AdamWRule', 'AttentionWeights']
"""

from muonlab.optim.adam import AdamW, AdamWRule
from muonlab.optim.engine import Engine
from muonlab.optim.interchange import convert
from muonlab.optim.muon import Muon, MuonRule
from muonlab.optim.qk_clip import AttentionWeights, qk_clip_, register_qk_clip
from muonlab.optim.routing import Route, route
from muonlab.optim.rule import Hyperparameter, Rule, StateField, hp
from muonlab.optim.sgd import SGD, SGDRule

__all__ = [
    "SGD",
    "AdamW",
    "AdamWRule",
    "AttentionWeights",
    "Engine",
    "Hyperparameter",
    "Muon",
    "MuonRule",
    "Route",
    "Rule",
    "SGDRule",
    "StateField",
    "convert",
    "hp",
    "qk_clip_",
    "register_qk_clip",
    "route",
]
