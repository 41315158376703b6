"""batch --predict: a batch size for a budget of tokens, from a short pilot."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from muonlab.cli.laboratory import Laboratory, print_json, users_code
from muonlab.cli.show import print_parts, show_price

__all__ = ["predict"]


def predict(chosen: Mapping[str, Any], laboratory: Laboratory, json: bool, dry_run: bool) -> None:
    """Run the pilot, and show what it recommends. Exit code 1 if some runs failed."""
    from muonlab.analyze.pilot import recommend
    from muonlab.report.pilot import pilot_table
    from muonlab.study.config import BatchConfig, validated
    from muonlab.study.pilot import plan_pilot

    config = validated(chosen, BatchConfig)
    with users_code():
        plan = plan_pilot(config)
    price = plan.price()
    if dry_run:
        return show_price(price, laboratory, json)
    pilots, outcome = laboratory.run(plan.protocol(), price.likely_tokens, plan.watch)
    found = [
        recommend(name, pilot.runs, plan.budget, _step_seconds(plan, name), pilot.settings)
        for name, pilot in pilots.items()
    ]
    if json:
        print_json({"runs_executed": outcome.num_executed, "predict": {one.optimizer: asdict(one) for one in found}})
    else:
        print_parts(pilot_table(found))
    if outcome.num_failed:
        sys.exit(1)


def _step_seconds(plan: Any, name: str) -> dict[int, float]:
    """By candidate; one step is timed, and the rest taken in proportion."""
    from muonlab.train.price import timed

    def seconds(batch: int) -> float:
        return timed(plan.bases[name].set({"batch_tokens": batch, "horizon_tokens": batch})).step_seconds

    with users_code():
        ends = {batch: seconds(batch) for batch in {min(plan.candidates), max(plan.candidates)}}
    least, most = min(ends), max(ends)
    slope = (ends[most] - ends[least]) / max(1, most - least)
    return {batch: ends[least] + slope * (batch - least) for batch in plan.candidates}
