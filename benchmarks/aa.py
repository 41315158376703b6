"""Does a real study find a difference where there is none? One optimizer under two names, trained on the embedded text.

    python benchmarks/aa.py --studies 10 --out benchmarks/results/aa.json

Both names are tuned by the whole protocol and compared over final seeds; all that differs are the seeds, which no run
of one name shares with any of the other. Every verdict is a false one. Runs are kept in `--store`, so that the same
command goes on after an interruption. The figures belong in docs/calibration.md.
"""

import argparse
import json
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muonlab.execute.executor import Executor, Observation
from muonlab.execute.local import LocalExecutor
from muonlab.execute.runner import Runner
from muonlab.records import Record, RunSpec
from muonlab.records.store import Store
from muonlab.study.compare import compare
from muonlab.study.config import validated
from muonlab.study.fairness import conclude
from muonlab.study.plan import plan_comparison
from muonlab.study.protocol import drive
from muonlab.train.environment import environment

OPTIMIZERS = ("adamw", "muon")  # in turn
AGAIN = "-again"  # ends the second name
APART = 5000  # between the seeds of the two names; between studies twice that
PRESET = {
    "task": "text",
    "horizon_tokens": 32_768,
    "batch_tokens": 512,
    "num_seeds": 5,
    "tuning_seeds": 3,
    "max_runs": 60,
    "settings": {"task.width": 16, "task.depth": 1, "task.seq_len": 32, "task.eval_tokens": 16_384},
}


@dataclass(frozen=True)
class SecondName:
    """Runs of the second name as what they are, at other seeds, and recorded as they were asked for."""

    executor: Executor

    def run(self, specs: Sequence[RunSpec], observation: Observation) -> Generator[Record, None, None]:
        asked = {_real(spec).key: spec for spec in specs}
        for record in self.executor.run([_real(spec) for spec in specs], observation):
            yield replace(record, spec=asked[record.key])


def _real(spec: RunSpec) -> RunSpec:
    if not spec.optimizer.endswith(AGAIN):
        return spec
    return replace(spec, optimizer=spec.optimizer.removesuffix(AGAIN), seed=spec.seed + APART)


def study(index: int, store: Store, workers: int) -> dict[str, Any]:
    name = OPTIMIZERS[index % len(OPTIMIZERS)]
    config = validated({**PRESET, "optimizers": (name,), "baseline": name, "first_seed": index * 2 * APART})
    plan = plan_comparison(config)
    again = name + AGAIN
    bases = {name: plan.bases[name], again: replace(plan.bases[name], optimizer=again)}
    runner = Runner(store, SecondName(LocalExecutor(workers=workers)))
    asked = config.model_dump(mode="json")
    evidence = drive(compare(bases, dict.fromkeys(bases, plan.spaces[name]), plan.rules, asked, {}), runner)
    finding = conclude(evidence, store.get(evidence.record_keys()))
    contrast, speedup = finding.contrasts[again], finding.speedup[again]
    return {
        "optimizer": name,
        "judgement": contrast.judgement,
        "p_value": contrast.p_value,
        "difference_nats": contrast.difference_nats,
        "speedup": [speedup.tokens, speedup.low, speedup.high],
        "noise_nats": finding.optimizers[name].loss_std,
        "runs": finding.num_runs,
        "failed_checks": [check.name for check in finding.checks if not check.ok],
        "verdict": finding.verdict,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--store", default="aa.db")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with Store(arguments.store) as store:
        for index in range(arguments.studies):
            row = study(index, store, arguments.workers)
            rows.append(row)
            print(f"{index}  {row['optimizer']}  {row['judgement']}  p {row['p_value']:.3f}  {row['verdict']}",
                  file=sys.stderr, flush=True)  # fmt: skip
    document = json.dumps({"preset": PRESET, "environment": environment("cpu"), "studies": rows}, indent=1)
    if arguments.out:
        arguments.out.write_text(document + "\n")
    else:
        print(document)


if __name__ == "__main__":
    main()
