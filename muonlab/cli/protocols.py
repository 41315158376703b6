"""What the verbs of studies have in common: planned, run, kept, concluded and shown by their kind."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muonlab.cli.arguments import check_out, command_line
from muonlab.cli.laboratory import Laboratory, users_code
from muonlab.cli.show import show_finding, show_price
from muonlab.errors import UsageError

__all__ = ["KINDS", "asked", "conclude_and_show", "evidence_of", "keep", "planned", "run"]

KINDS = ("comparison", "ladder", "batch", "transfer", "features")


@dataclass(frozen=True)
class Kind:
    """A kind of study: how it is asked for, planned, kept and concluded."""

    config: Any
    plan: Callable[[Any], Any]
    evidence: Any
    conclude: Callable[[Any, Any], Any]


def kind_of(name: str) -> Kind:
    """The kind of that name, of KINDS."""
    from muonlab.records import evidence as of
    from muonlab.records.features import FeaturesEvidence
    from muonlab.records.transfer_evidence import TransferEvidence
    from muonlab.study import (
        batch_plan,
        config,
        fairness,
        features,
        features_fairness,
        ladder_plan,
        plan,
        transfer_fairness,
        transfer_plan,
    )  # fmt: skip

    kinds = {
        "comparison": (config.ComparisonConfig, plan.plan_comparison, of.Evidence, fairness.conclude),
        "ladder": (config.LadderConfig, ladder_plan.plan_ladder, of.LadderEvidence, fairness.conclude_ladder),
        "batch": (config.BatchConfig, batch_plan.plan_batch, of.BatchEvidence, fairness.conclude_batch),
        "transfer": (
            config.TransferConfig, transfer_plan.plan_transfer, TransferEvidence, transfer_fairness.conclude_transfer,
        ),
        "features": (
            config.FeaturesConfig, features.plan_features, FeaturesEvidence, features_fairness.conclude_features,
        ),
    }  # fmt: skip
    return Kind(*kinds[name])


def planned(kind: str, chosen: Mapping[str, Any]) -> tuple[Any, Any]:
    """Config and plan of what was chosen.

    Raises   UsageError for what can't be run
    """
    from muonlab.study.config import validated

    what = kind_of(kind)
    config = validated(chosen, what.config)
    with users_code():
        plan = what.plan(config)
    if kind == "comparison" and len(config.optimizers) < 2:
        raise UsageError('a comparison needs at least two optimizers: optimizers = ["adamw", "muon"] or --optimizers')
    return config, plan


def asked(config: Any, plan: Any, command: str) -> dict[str, Any]:
    """The study as it was asked for, which its evidence and the store keep."""
    more = {"conventions": plan.conventions, "starts": plan.starts, "command": command}
    return {**config.model_dump(mode="json"), **more}


def run(kind: str, chosen: Mapping[str, Any], laboratory: Laboratory, out: Path, json: bool, dry_run: bool) -> None:
    """Make the runs that are missing, and show what came out. Exit code 1 if some failed."""
    config, plan = planned(kind, chosen)
    price = plan.price()
    if dry_run:
        return show_price(price, laboratory, json, is_done=laboratory.has_study(config.key))
    check_out(out)
    command = command_line()
    study = asked(config, plan, command)
    evidence, outcome = laboratory.run(plan.protocol(study), price.likely_tokens, plan.watch)
    records, created = keep(laboratory.store_url, kind, config, study, evidence)
    conclude_and_show(kind, evidence, records, outcome.num_executed, out, created, command, json)
    if outcome.num_failed:
        sys.exit(1)


def keep(url: str, kind: str, config: Any, study: Mapping[str, Any], evidence: Any) -> tuple[Any, str]:
    """Save the study where the store can be written; its records, and when it was saved."""
    from muonlab.records.store import Store

    with Store(url) as store:
        if not store.read_only:
            store.save_study(config.key, kind, config.task, study, evidence.to_dict())
        created = next((row.created for row in store.studies() if row.key == config.key), "")
        return store.get(evidence.record_keys()), created


def evidence_of(kind: str, saved: Mapping[str, Any]) -> Any:
    """The evidence that a store keeps, as what it was."""
    return kind_of(kind).evidence.from_dict(saved)


def conclude_and_show(
    kind: str, evidence: Any, records: Any, executed: int, out: Path, created: str, command: str, json: bool,
    **more: Any,
) -> None:  # fmt: skip
    """The finding as tables or JSON, with `more` at the top of the document, and as a page."""
    finding = kind_of(kind).conclude(evidence, records)
    show_finding(kind, finding, executed, out, created, command, json, **more)
