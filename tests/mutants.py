"""Plant known bugs, one at a time, and see the tests catch them: `make mutants`.

Each mutant is a change of one line that somebody has made by mistake in some optimizer library, or could make here.
A survivor means that a test is missing. Exit code 1 if any survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """A bug: in `file`, `old` (which must stand there exactly once) becomes `new`; `tests` must fail."""

    bug: str
    file: str
    old: str
    new: str
    tests: str


OPTIM, KERNELS, STUDY, TRAIN = "tests/optim", "tests/kernels", "tests/study", "tests/train"
ANALYZE, EXECUTE, TASKS, RECORDS = "tests/analyze", "tests/execute", "tests/tasks", "tests/records"
ENGINE, MUON, ADAM = "muonlab/optim/engine.py", "muonlab/optim/muon.py", "muonlab/optim/adam.py"
UPDATE, GUARD = "muonlab/optim/update.py", "muonlab/optim/guard.py"
MOMENTS, LOOP = "muonlab/kernels/moments.py", "muonlab/train/loop.py"
TUNE, TRIALS, COMPARE = "muonlab/study/tune.py", "muonlab/study/trials.py", "muonlab/study/compare.py"
SIGNIFICANCE, SPEEDUP = "muonlab/analyze/significance.py", "muonlab/analyze/speedup.py"

MUTANTS = (
    Mutant("sign of the update flipped", UPDATE, "for piece in alike], alpha=-rule.lr * scale)",
           "for piece in alike], alpha=rule.lr * scale)", OPTIM),
    Mutant("weight decay lost", UPDATE, "_scale([piece.w for piece in pieces], shrink)", "pass", OPTIM),
    Mutant("weight decay without lr", UPDATE, "1 - rule.lr * rule.weight_decay", "1 - rule.weight_decay", OPTIM),
    Mutant("independent decay follows lr", UPDATE, "1 - job.lr_fraction * rule", "1 - rule.lr * rule", OPTIM),
    Mutant("cautious decay where it should not be", UPDATE, "torch.signbit(u) == torch.signbit(w)",
           "torch.signbit(u) != torch.signbit(w)", OPTIM),
    Mutant("moving average discarded", MOMENTS, "return m.lerp_(x,", "return m.lerp(x,", OPTIM),
    Mutant("moving average upside down", MOMENTS, "torch._foreach_lerp_(ms, xs, 1 - beta)",
           "torch._foreach_lerp_(ms, xs, beta)", OPTIM),
    Mutant("bias correction off by one", MOMENTS, "return 1 - beta**t", "return 1 - beta ** (t + 1)", OPTIM),
    Mutant("eps inside the root", ADAM, "** 0.5).add_(self.eps)", "** 0.5).add_(self.eps**0.5)", OPTIM),
    Mutant("Nesterov forgotten", MUON, "if self.nesterov else [m", "if not self.nesterov else [m", OPTIM),
    Mutant("momentum buffer handed out", MUON, "if self.nesterov else [m.clone() for m in ms]",
           "if self.nesterov else ms", OPTIM),
    Mutant("heavy ball forgets nothing", MUON, "torch._foreach_mul_(ms, self.momentum)\n", "pass\n", OPTIM),
    Mutant("scale rule on the wrong side", "muonlab/kernels/norms.py", "math.sqrt(max(1.0, fan_out / max(1, fan_in)))",
           "math.sqrt(max(1.0, fan_in / max(1, fan_out)))", f"{KERNELS} {OPTIM}"),
    Mutant("one matrix leaks into the batch", UPDATE, "else torch.stack([us[k] for k in ks]) for ks in groups]",
           "else torch.stack([us[k] + 1e-3 * us[ks[0]] for k in ks]) for ks in groups]", OPTIM),
    Mutant("parts of a fused weight mixed up", "muonlab/optim/blocks.py", "x.narrow(0, self.start, self.rows)",
           "x.narrow(0, 0, self.rows)", OPTIM),
    Mutant("non-finite step not skipped", ENGINE, "not all_finite(grads)", "not all_finite(grads[:0])", OPTIM),
    Mutant("skipped step still counted", GUARD, "counter -= 1", "counter -= 0", OPTIM),
    Mutant("state poisoned by a masked step", UPDATE, "state[name].copy_(torch.where(live, state[name], value))",
           "pass", OPTIM),
    Mutant("stochastic rounding without noise", "muonlab/kernels/rounding.py", "* 0x9E3779B9)) & 0xFFFF",
           "* 0x9E3779B9)) & 0x0", OPTIM),
    Mutant("master copy rounded when loaded", ENGINE, "value.to(p.device, wanted, copy=True)",
           "value.to(p.device, p.dtype).to(wanted)", OPTIM),
    Mutant("Gram iteration never restarted", "muonlab/kernels/gram.py", "MAX_NOISE = 1e-3", "MAX_NOISE = 1e9", KERNELS),
    Mutant("failed Cholesky trusted", "muonlab/kernels/rational.py", "    if failed.any():\n        failed &=",
           "    if False:\n        failed &=", KERNELS),
    Mutant("symmetric product left half empty", "muonlab/kernels/symmetric.py",
           "out[k, :i, i:j].copy_(panel[:, :i].mT)", "out[k, :i, i:j].zero_()", KERNELS),
    Mutant("norm forgotten in Gram space", "muonlab/kernels/gram.py", ".mul_(norm.rsqrt())", ".mul_(norm)", KERNELS),
    Mutant("pairs alone decide after tuning", SIGNIFICANCE, "math.hypot(math.sqrt(noise), tuning_nats or 0.0)",
           "math.sqrt(noise)", f"{ANALYZE} {STUDY}"),
    Mutant("QK-clip shrinks the wrong share", "muonlab/optim/qk_clip.py", "** (1 - balance)", "** balance", OPTIM),
    Mutant("batch order depends on the batch size", "muonlab/tasks/text.py", "np.arange(start + 1, start + count + 1",
           "np.arange(count * start + 1, count * start + count + 1", TASKS),
    Mutant("one micro-batch counted twice", LOOP, "first = start + part * self.micro_samples",
           "first = start + max(part - 1, 0) * self.micro_samples", TRAIN),
    Mutant("gradient accumulation not averaged", LOOP, "self.forward, batch) / parts", "self.forward, batch)", TRAIN),
    Mutant("divergence goes unnoticed", LOOP, "if not (math.isfinite(loss) and math.isfinite(norm)):",
           "if not (math.isfinite(loss) or math.isfinite(norm)):", TRAIN),
    Mutant("generators not restored on resume", LOOP, 'restore_rng(state["rng"])', "pass", TRAIN),
    Mutant("schedule never decays", "muonlab/train/schedules.py", "return final + (1.0 - final) * remaining",
           "return 1.0", TRAIN),
    Mutant("memo forgets", "muonlab/execute/runner.py", "if key not in done", "if key not in ()", EXECUTE),
    Mutant("crash recorded as a result", "muonlab/execute/local.py", 'outcome="failed"', 'outcome="diverged"', EXECUTE),
    Mutant("any gain is a gain", TRIALS, "self.mean >= self.needed(num_errors, threshold_nats)",
           "self.mean > 0", STUDY),
    Mutant("diverged runs left out of the mean", TRIALS, 'record.final_loss if record.outcome == "ok"',
           'record.final_loss or 0.0 if record.outcome != "failed"', STUDY),
    Mutant("optimum on the edge accepted", TUNE, "if current == edge]", "if current != current]", STUDY),
    Mutant("tuning seeds used for the final runs", COMPARE, "for seed in self.rules.final_seeds]",
           "for seed in self.rules.tuning.seeds[:len(self.rules.final_seeds)]]", STUDY),
    Mutant("baseline not re-tuned at its horizons", COMPARE, "if horizon_tokens != self.horizon_tokens:",
           "if horizon_tokens is None:", STUDY),
    Mutant("verdict without the interval", SIGNIFICANCE, 'and speedup.low is not None and speedup.low > 1.0',
           "and True", ANALYZE),
    Mutant("one-sided test", SIGNIFICANCE, "2 * stats.t.sf(", "1 * stats.t.sf(", ANALYZE),
    Mutant("variance of the population, not of the sample", SIGNIFICANCE, "degrees = sum(len(group) - 1 for",
           "degrees = sum(len(group) for", ANALYZE),
    Mutant("speedup inverted", SPEEDUP, "-1.0 / self.exponent)", "1.0 / self.exponent)", ANALYZE),
    Mutant("seed missing from the key", "muonlab/records/spec.py", "seed: int = 0  #",
           'seed: int = field(default=0, metadata={"in_key": False})  #', RECORDS),
)  # fmt: skip


def copy_tree(target: Path) -> None:
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    for name in names:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def killed(mutant: Mutant, tree: Path) -> bool:
    """Whether the tests notice. The file is restored afterwards."""
    path = tree / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.bug}: {mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [*command, *mutant.tests.split()], cwd=tree, env=environment, capture_output=True, text=True, timeout=900
        )
        return done.returncode == 1
    finally:
        path.write_text(text)


def main() -> int:
    wanted = sys.argv[1:]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        for mutant in MUTANTS:
            if wanted and not any(word in mutant.bug for word in wanted):
                continue
            dead = killed(mutant, tree)
            print(f"{'killed  ' if dead else 'SURVIVED'}  {mutant.bug}", flush=True)
            survivors += [] if dead else [mutant.bug]
    print(f"{len(survivors)} survived" + (f": {', '.join(survivors)}" if survivors else ""))
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
