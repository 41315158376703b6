"""What the verbs of comparisons and ladders have in common: planned, run, kept, concluded and shown by their kind."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muonlab.cli.arguments import check_out, command_line
from muonlab.cli.laboratory import Laboratory, users_code
from muonlab.cli.show import show_comparison, show_ladder, show_price
from muonlab.errors import UsageError

__all__ = ["KINDS", "asked", "conclude_and_show", "evidence_of", "keep", "planned", "run"]

KINDS = ("comparison", "ladder")


def planned(kind: str, chosen: Mapping[str, Any]) -> tuple[Any, Any]:
    """Config and plan of what was chosen.

    Raises   UsageError for what can't be run
    """
    from muonlab.study.config import ComparisonConfig, LadderConfig, validated
    from muonlab.study.ladder_plan import plan_ladder
    from muonlab.study.plan import plan_comparison

    is_ladder = kind == "ladder"
    config = validated(chosen, LadderConfig if is_ladder else ComparisonConfig)
    with users_code():
        plan = plan_ladder(config) if is_ladder else plan_comparison(config)
    if not is_ladder and len(config.optimizers) < 2:
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
        return show_price(price, laboratory.num_workers, json)
    check_out(out)
    command = command_line()
    study = asked(config, plan, command)
    evidence, outcome = laboratory.run(plan.protocol(study), price.likely_tokens)
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
    from muonlab.records.evidence import Evidence, LadderEvidence

    return (LadderEvidence if kind == "ladder" else Evidence).from_dict(saved)


def conclude_and_show(
    kind: str, evidence: Any, records: Any, executed: int, out: Path, created: str, command: str, json: bool,
    **more: Any,
) -> None:  # fmt: skip
    """The finding as tables or JSON, with `more` at the top of the document, and as a page."""
    from muonlab.study.fairness import conclude, conclude_ladder

    if kind == "ladder":
        return show_ladder(conclude_ladder(evidence, records), executed, out, created, command, json, **more)
    show_comparison(conclude(evidence, records), executed, out, created, command, json, **more)
