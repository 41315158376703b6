"""Measuring optimizers on this machine: step time, memory and exactness, beside the peers that are installed.

Peers are imported only when one of them is measured.
"""

from muonlab.bench.benchmark import Plan, run
from muonlab.bench.contest import Conditions
from muonlab.bench.peers import ADAMW_PEERS, MUON_PEERS, Contender, find_peer, ours
from muonlab.bench.sets import SETS, ParameterSet, find_set

__all__ = [
    "ADAMW_PEERS", "MUON_PEERS", "SETS", "Conditions", "Contender", "ParameterSet", "Plan", "find_peer", "find_set",
    "ours", "run",
]  # fmt: skip
