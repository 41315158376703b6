"""Evidence through JSON, and as earlier versions wrote it."""

import json

from muonlab.records.evidence import Arm, Cell, Evidence, Move, Trial, Tuning

TUNING = Tuning(
    optimizer="muon", horizon_tokens=8, coordinates=("opt.lr",), best={"opt.lr": 0.1},
    trials=(Trial(settings={"opt.lr": 0.1}, keys=("t",)),),
    moves=(
        Move(coordinate="opt.lr", old=0.2, new=0.1, gain=None, standard_error=None, num_seeds=1, accepted=True,
             reason="why"),
    ),
    edges=(), converged=True, num_runs=1, tokens=8,
)  # fmt: skip
CELL = Cell(horizon_tokens=8, settings={"opt.lr": 0.1}, keys=("a", "b"), tuning=TUNING)
EVIDENCE = Evidence(
    task="text", baseline="muon", horizon_tokens=8, final_seeds=(0, 1), margin_nats=0.01,
    arms={
        "muon": Arm(name="muon", optimizer="muon", cells=(CELL,)),
        "two": Arm(name="two", optimizer="muon", cells=(CELL,), fixed={"opt.ns_coefficients": ((4, -7), (3, -4))}),
    },
)  # fmt: skip


def through_json(values):
    return json.loads(json.dumps(values))


def test_round_trip():
    assert Evidence.from_dict(through_json(EVIDENCE.to_dict())) == EVIDENCE
    assert EVIDENCE.record_keys() == ("a", "b", "t")


def test_evidence_from_before_variants_and_margins_is_read():
    values = through_json(EVIDENCE.to_dict())
    del values["margin_nats"]
    for arm in values["arms"].values():
        del arm["optimizer"], arm["fixed"]
    old = Evidence.from_dict(values)
    assert old.margin_nats is None
    assert [(arm.name, arm.optimizer, arm.fixed) for arm in old.arms.values()] == [("muon", "", {}), ("two", "", {})]
    assert old.record_keys() == EVIDENCE.record_keys()
