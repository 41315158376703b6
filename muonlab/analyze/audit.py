"""What a reviewer would object to in a table of optimizer comparisons: every rule, what it found, what it could not."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from muonlab.analyze.audit_rows import Evidence, Finding
from muonlab.analyze.audit_runs import (
    cherry_picked_step,
    conditions_differ,
    few_seeds,
    lr_not_decayed,
    mid_schedule,
    missing_cells,
)
from muonlab.analyze.audit_tables import from_runs, from_store, from_table
from muonlab.analyze.audit_tuning import Result, grid_edge, threshold_below_noise, unequal_tuning, untuned_baseline

__all__ = ["RULES", "SEVERITIES", "Audit", "Evidence", "Finding", "audit", "from_runs", "from_store", "from_table"]

SEVERITIES = ("error", "warning", "note")

RULES: Mapping[str, Callable[[Evidence], Result]] = {
    "grid_edge": grid_edge,
    "unequal_tuning": unequal_tuning,
    "untuned_baseline": untuned_baseline,
    "mid_schedule": mid_schedule,
    "lr_not_decayed": lr_not_decayed,
    "few_seeds": few_seeds,
    "conditions_differ": conditions_differ,
    "threshold_below_noise": threshold_below_noise,
    "cherry_picked_step": cherry_picked_step,
    "missing_cells": missing_cells,
}


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The findings, worst first, and how far they go."""

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]  # rules
    skipped: Mapping[str, str]  # rule -> why the table does not allow it, and which column would
    baseline: str
    num_rows: int
    noise_nats: float  # standard deviation between seeds that was used
    noise_is_measured: bool

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def is_clean(self, *, strict: bool = False) -> bool:
        """No error; with `strict` no warning either."""
        return not self.count("error") and not (strict and self.count("warning"))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def audit(evidence: Evidence) -> Audit:
    """Apply every rule.

    >>> rows = [{"optimizer": "adamw", "tokens": 1e6, "loss": 3.0, "lr": 3e-4, "line": 2},
    ...         {"optimizer": "muon", "tokens": 1e6, "loss": 2.9, "lr": 0.01, "line": 3},
    ...         {"optimizer": "muon", "tokens": 1e6, "loss": 2.8, "lr": 0.02, "line": 4}]
    >>> found = audit(from_table(rows, "runs.csv"))
    >>> [(finding.rule, finding.severity, finding.rows) for finding in found.findings][:2]
    [('untuned_baseline', 'error', (2,)), ('untuned_baseline', 'error', (2,))]
    >>> found.is_clean(), "conditions_differ" in found.skipped
    (False, True)
    """
    results = {name: rule(evidence) for name, rule in RULES.items()}
    findings = [finding for result in results.values() if not isinstance(result, str) for finding in result]
    return Audit(
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        checked=tuple(name for name, result in results.items() if not isinstance(result, str)),
        skipped={name: result for name, result in results.items() if isinstance(result, str)},
        baseline=evidence.baseline,
        num_rows=len(evidence.rows),
        noise_nats=evidence.threshold,
        noise_is_measured=evidence.noise is evidence.measured,
    )
