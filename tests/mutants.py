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
SHARDING = f"{OPTIM}/test_sharding.py"
AGREEMENT, PLACES = "muonlab/optim/agreement.py", "muonlab/optim/sharding.py"
FAMILY = f"{OPTIM}/test_conformance.py {OPTIM}/references"
BLOCKS, STEPS, GUARDS = f"{OPTIM}/test_blocks.py", f"{OPTIM}/test_steps.py", f"{OPTIM}/test_guard.py"
ENGINE, UPDATE, GUARD = "muonlab/optim/engine.py", "muonlab/optim/update.py", "muonlab/optim/guard.py"
ADAM, LION, MARS, SOPHIA = (f"muonlab/optim/{name}.py" for name in ("adam", "lion", "mars", "sophia"))
NORMUON, SOAP, SHAMPOO, KRON = (f"muonlab/optim/{name}.py" for name in ("normuon", "soap", "shampoo", "kron"))
MOMENTS, WHITENING, LOOP = "muonlab/kernels/moments.py", "muonlab/kernels/whitening.py", "muonlab/train/loop.py"
TUNE, TRIALS, COMPARE = "muonlab/study/tune.py", "muonlab/study/trials.py", "muonlab/study/compare.py"
SIGNIFICANCE, SPEEDUP = "muonlab/analyze/significance.py", "muonlab/analyze/speedup.py"
LADDER, FAIRNESS, LADDERS = "muonlab/study/ladder.py", "muonlab/study/fairness.py", f"{STUDY}/test_ladder.py"
FOUND, PROFILES, ASKING = "muonlab/analyze/ladder.py", "muonlab/analyze/profiles.py", "tests/cli/test_asking.py"

REPRESENTATIONS, RANKS = "muonlab/representations.py", "tests/test_representations.py"
FEATURES, PARAMETRIZATION = f"{ANALYZE}/test_features.py {STUDY}/test_features.py", f"{OPTIM}/test_parametrization.py"

MUTANTS = (
    Mutant("rank of what was not centred", REPRESENTATIONS, "np.linalg.svd(_centred(x), compute_uv=False)",
           "np.linalg.svd(_finite(x), compute_uv=False)", RANKS),
    Mutant("entropy of the squares", REPRESENTATIONS, "p, squares = s / s.sum(), s**2",
           "p, squares = s**2 / (s**2).sum(), s**2", RANKS),
    Mutant("likeness of the biased kind", REPRESENTATIONS, "np.fill_diagonal(gram, 0.0)", "pass", RANKS),
    Mutant("a class is its own rival", REPRESENTATIONS, "others[rows, y] = -np.inf", "pass", RANKS),
    Mutant("a margin over its own class's weights", REPRESENTATIONS, "_norms(w[y] - w[rivals])", "_norms(w[y])", RANKS),
    Mutant("a probe is tried on what it was fitted to", "muonlab/train/features.py",
           "first, second = order[::2], order[1::2]", "first, second = order[::2], order[::2]",
           f"{TRAIN}/test_features.py"),
    Mutant("corrupted inputs with moved targets", "muonlab/train/corrupted.py",
           "losses.append(float(task.loss(one, moved)) * weight)",
           "losses.append(float(task.loss(one, (moved[0], moved[1].roll(1)))) * weight)", f"{TRAIN}/test_features.py"),
    Mutant("same loss taken at the look after it", "muonlab/analyze/feature_looks.py",
           "(losses[hit - 1] - loss) / (losses[hit - 1] - losses[hit])", "1.0", FEATURES),
    Mutant("same loss is the lower of both", "muonlab/analyze/feature_looks.py",
           "loss = max(run.eval_loss[-1] for run in pair)", "loss = min(run.eval_loss[-1] for run in pair)", FEATURES),
    Mutant("in every layer means in one", "muonlab/analyze/features.py", 'set(said) == {"higher"}', '"higher" in said',
           FEATURES),
    Mutant("errors over those of another seed's clean inputs", "muonlab/analyze/robustness.py",
           "1 - side[seed] / before[seed] for seed in side", "before[seed] - side[seed] for seed in side",
           f"{ANALYZE}/test_robustness.py"),
    Mutant("two seeds of one are one seed with itself", "muonlab/analyze/likeness.py",
           "own_seeds=_spread(combinations(a.values(), 2))", "own_seeds=_spread((x, x) for x in a.values())",
           f"{ANALYZE}/test_robustness.py"),
    Mutant("the head of another task is kept", "muonlab/train/inherit.py",
           "and n not in kept}", "}", f"{TRAIN}/test_inherit.py"),
    Mutant("a linear probe of the first layer", "muonlab/train/linear_probe.py", "list(layers_of(model))[-1]",
           "list(layers_of(model))[0]", f"{TRAIN}/test_linear_probe.py"),
    Mutant("muon's lr is that of element-wise rules", "muonlab/optim/parametrization.py",
           '"muon": Law(_orthogonal, QIU)', '"muon": Law(_element_wise, QIU)', PARAMETRIZATION),
    Mutant("eps forgets the depth", "muonlab/optim/parametrization.py",
           'return {"lr": 1 / g.fan_in, "eps": 1 / (g.depth * g.fan_out)}',
           'return {"lr": 1 / g.fan_in, "eps": 1 / g.fan_out}', PARAMETRIZATION),
    Mutant("an optimum drifts the other way", "muonlab/analyze/drift.py", "return self.limit - self.rate / width, half",
           "return self.limit + self.rate / width, half", "tests/test_doctests.py"),
    Mutant("ranks end at once", "muonlab/train/ranks.py", "        pause_at_exit()\n", "",
           f"{TRAIN}/test_parallel.py"),
    Mutant("mean of weights lags a step", "muonlab/train/averaging.py", "(t + self.power))", "(t + 1 + self.power))",
           TRAIN),
    Mutant("last weights evaluated instead of the mean", "muonlab/train/averaging.py", "self._put(self.means)",
           "self._put(own)", TRAIN),
    Mutant("noise in units of steps", "muonlab/train/noise.py", "(1.0 / small - 1.0 / large),", "(large - small),",
           f"{TRAIN}/test_noise.py"),
    Mutant("signal holds its own noise", "muonlab/train/noise.py", "(first * _polar(second)).sum()",
           "(first * _polar(first)).sum()", f"{TRAIN}/test_noise.py"),
    Mutant("a ratio of noise upside down", "muonlab/analyze/critical_batch.py", "math.log(n.sum() / s.sum())",
           "math.log(s.sum() / n.sum())", ANALYZE),
    Mutant("twice the tokens for 20 % more", "muonlab/analyze/critical_batch.py", "for more in (OVERHEAD, 1.0)",
           "for more in (1.0, OVERHEAD)", ANALYZE),
    Mutant("a crossing read off at the evaluation after it", "muonlab/analyze/reaching.py",
           "(before - target) / (before - loss)", "1.0", ANALYZE),
    Mutant("a target below the first evaluation counts as reached there", "muonlab/analyze/reaching.py", "early=True)",
           "early=False)", ANALYZE),
    Mutant("an all-reduce between one device and itself", "muonlab/analyze/frontier.py", "2 * (devices - 1) / devices",
           "2 * devices / devices", "tests/study/test_batch.py tests/analyze"),
    Mutant("first Gram matrix in the wrong unit", "muonlab/kernels/gram.py", "alpha=c / unit**2", "alpha=c / unit",
           KERNELS),
    Mutant("matrices handed on before the scale is taken off", "muonlab/kernels/gram.py", "q.mul_(unit**-0.5)",
           "q.mul_(unit**-1.0)", KERNELS),
    Mutant("no new Gram matrix in float16", "muonlab/kernels/gram.py", "MAX_NOISE_HALF = 0.2", "MAX_NOISE_HALF = 1e9",
           KERNELS),
    Mutant("finish left out", "muonlab/optim/rule.py", "return cls.finish is not Rule.finish", "return False", FAMILY),
    Mutant("sign of the update flipped", UPDATE, "us, alpha=-rule.lr * scale)",
           "us, alpha=rule.lr * scale)", OPTIM),
    Mutant("rows of one parameter, state of another", UPDATE, "{name: run[k] for name",
           "{name: run[0] for name", STEPS),
    Mutant("weight decay lost", UPDATE, "_scale([piece.w for piece in pieces], shrink, live)", "pass", OPTIM),
    Mutant("weight decay without lr", UPDATE, "1 - rule.lr * rule.weight_decay", "1 - rule.weight_decay", OPTIM),
    Mutant("independent decay follows lr", UPDATE, "1 - job.lr_fraction * rule", "1 - rule.lr * rule", OPTIM),
    Mutant("cautious decay where it should not be", UPDATE, "torch.signbit(u) == torch.signbit(w)",
           "torch.signbit(u) != torch.signbit(w)", OPTIM),
    Mutant("moving average discarded", MOMENTS, "return m.lerp_(x,", "return m.lerp(x,", OPTIM),
    Mutant("moving average upside down", MOMENTS, "_weight(1 - beta, x))", "_weight(beta, x))", OPTIM),
    Mutant("bias correction off by one", MOMENTS, "return 1 - beta**t", "return 1 - beta ** (t + 1)", OPTIM),
    Mutant("eps inside the root", MOMENTS, ".add_(floor_of(eps, v))", ".add_(floor_of(eps, v) ** 0.5)", OPTIM),
    Mutant("Nesterov forgotten", MOMENTS, "mix(g, m, momentum) if nesterov", "mix(g, m, momentum) if not nesterov",
           OPTIM),
    Mutant("momentum buffer handed out", MOMENTS, "if nesterov else m.clone()\n    m.mul_",
           "if nesterov else m\n    m.mul_",
           OPTIM),
    Mutant("heavy ball forgets nothing", MOMENTS, "m.mul_(momentum).add_(g)", "m.add_(g)", OPTIM),
    Mutant("scale rule on the wrong side", "muonlab/kernels/norms.py", "math.sqrt(max(1.0, fan_out / max(1, fan_in)))",
           "math.sqrt(max(1.0, fan_in / max(1, fan_out)))", f"{KERNELS} {OPTIM}"),
    Mutant("one matrix leaks into the batch", UPDATE, "else torch.stack([us[n] for n in ns]) for ns in groups]",
           "else torch.stack([us[n] + 1e-3 * us[ns[0]] for n in ns]) for ns in groups]", OPTIM),
    Mutant("parts of a fused weight mixed up", "muonlab/optim/blocks.py", "x.narrow(0, self.start, self.rows)",
           "x.narrow(0, 0, self.rows)", OPTIM),
    Mutant("non-finite step not skipped", ENGINE, "or all_finite(grads.values())", "or True", OPTIM),
    Mutant("skipped step still counted", GUARD, "counter -= 1", "counter -= 0", OPTIM),
    Mutant("state poisoned by a masked step", UPDATE, "torch.where(live, state[name], value, out=state[name])",
           "pass", OPTIM),
    Mutant("stochastic rounding without noise", "muonlab/kernels/rounding.py", "* 0x9E3779B9)) & 0xFFFF",
           "* 0x9E3779B9)) & 0x0", OPTIM),
    Mutant("master copy rounded when loaded", "muonlab/optim/loading.py", "value.to(p.device, wanted))",
           "value.to(p.device, p.dtype).to(wanted))", OPTIM),
    Mutant("shard orthogonalised by itself", "muonlab/optim/owners.py", 'if matrices or rule.sees == "whole":',
           'if rule.sees == "whole":', SHARDING),
    Mutant("a rank decides alone to skip", AGREEMENT, "finding, low, high = said.tolist()",
           "_, low, high = said.tolist()", SHARDING),
    Mutant("ranks step at other learning rates", AGREEMENT, "for p in members]).encode(), mine)",
           "for p in members]).encode())", SHARDING),
    Mutant("a rank that is gone goes unsaid", AGREEMENT, '"another rank does not answer: it', '"it', SHARDING),
    Mutant("parts from every replica", PLACES, "if self.rows[rank] == self.rows[owner] and", "if", SHARDING),
    Mutant("strided shards outside the others", PLACES, "for i in (*plain, *reversed(strided))",
           "for i in (*strided, *plain)", SHARDING),
    Mutant("pieces of an expert taken for whole ones", "muonlab/optim/owners.py",
           "max(layout.sharded_dims) < p.ndim - 2", "max(layout.sharded_dims) < p.ndim", SHARDING),
    Mutant("owner's scale applied to every block", "muonlab/optim/owners.py", "if len(scales[i]) == 1 else 1.0)",
           "if len(scales[i]) == 0 else 1.0)", SHARDING),
    Mutant("owner keeps what others need", "muonlab/optim/sharded.py",
           "            _complete(process_group, owned, found)", "            pass", SHARDING),
    Mutant("cautious mask inverted", ADAM, ".mul_(g).gt_(0)", ".mul_(g).lt_(0)", FAMILY),
    Mutant("cautious share not given back", ADAM, ".mul_(mask.div_(share))", ".mul_(mask)", FAMILY),
    Mutant("Adam-mini by the largest of a block", ADAM, ".square().mean(1, keepdim=True)",
           ".square().amax(1, keepdim=True)", FAMILY),
    Mutant("head partition ignored", "muonlab/optim/blocks.py", 'if group.get("num_heads") is None:', "if True:",
           f"{FAMILY} {BLOCKS}"),
    Mutant("ADOPT scales by the gradient that it scales", ADAM, "ratio = (g / v.sqrt()",
           "ratio = (g / ema_square_(v.clone(), g, self.betas[1]).sqrt()", FAMILY),
    Mutant("ADOPT not clipped", ADAM, ".clamp_(-bound, bound)", "", FAMILY),
    Mutant("ADOPT clipped a step late", ADAM, "bound = (t - 1) ** 0.25", "bound = t**0.25", FAMILY),
    Mutant("AdEMAMix without its slow average", ADAM, 'ema_(state["exp_avg_slow"], g, beta3) * alpha',
           'ema_(state["exp_avg_slow"], g, beta3) * 0', FAMILY),
    Mutant("AdEMAMix warmed up the wrong way round", ADAM, "((1 - done) * slow + done * fast)",
           "((1 - done) * fast + done * slow)", FAMILY),
    Mutant("NAdam without look-ahead", ADAM, "for i in (0, 1))", "for i in (0, 0))", FAMILY),
    Mutant("NAdam forgets all momenta but the last", ADAM, 'product = state["mu_product"].mul_(mu)',
           'product = state["mu_product"].fill_(mu)', FAMILY),
    Mutant("NAdam corrected for one step less", ADAM, "product = beta1**t", "product = beta1 ** (t - 1)", FAMILY),
    Mutant("previous gradient not stored", MARS, "last.copy_(g)", "pass", FAMILY),
    Mutant("variance increased instead of reduced", MARS, "(g - last)", "(last - g)", FAMILY),
    Mutant("corrected gradient not clipped", MARS, "c.div_(norm.clamp(min=1.0) / peak)",
           "c.div_(norm.clamp(max=1.0) / peak)",
           FAMILY),
    Mutant("Lion looks ahead by the wrong beta", LION, "mix(g, m, self.betas[0])", "mix(g, m, self.betas[1])", FAMILY),
    Mutant("Lion moves its average first", LION, "mix(g, m, self.betas[0])",
           "mix(g, ema_(m, g, self.betas[1]), self.betas[0])", FAMILY),
    Mutant("Signum without a sign", LION, "nesterov=self.nesterov).sign_()", "nesterov=self.nesterov)", FAMILY),
    Mutant("curvature without num_samples", SOPHIA, " * math.sqrt(num_samples)", "", FAMILY),
    Mutant("Sophia not clipped", SOPHIA, ".clamp_(-1.0, 1.0)", "", FAMILY),
    Mutant("curvature asked for a step late", SOPHIA, "(t - 1) % self.observe_every", "t % self.observe_every",
           f"{FAMILY} {OPTIM}/test_observation.py"),
    Mutant("row moment lost", NORMUON, 'ema_(state["row_moment"], _row_means(o), self.beta2)', "_row_means(o)", FAMILY),
    Mutant("norm not restored", NORMUON, ".mul_(math.sqrt(min(u.shape[-2:])))", "", FAMILY),
    Mutant("AdaMuon of the momentum, not of its signs", NORMUON, "[u.sign() for u in us]", "us", FAMILY),
    Mutant("sphere radius lost", UPDATE, "torch.where(turns, radius * normalise(moved), w)",
           "torch.where(turns, normalise(moved), w)", FAMILY),
    Mutant("angle taken for a length", UPDATE, "- angle * radius * normalise(", "- angle * normalise(", FAMILY),
    Mutant("turned the wrong way", UPDATE, "- angle * radius", "+ angle * radius", FAMILY),
    Mutant("radius of another matrix", UPDATE, '[state_key("radius", k)]', '[state_key("radius", 0)]',
           f"{FAMILY} {BLOCKS}"),
    Mutant("rounding turns a weight", UPDATE, "(moved != w)", "(moved == moved)", STEPS),
    Mutant("momentum of orthogonal gradients lost", "muonlab/optim/orthogonal_sgdm.py", '(state["momentum_buffer"], u,',
           '(state["momentum_buffer"].clone(), u,', FAMILY),
    Mutant("Scion with Muon's scale", "muonlab/optim/scion.py", 'hp("spectral"', 'hp("original"', FAMILY),
    Mutant("basis not refreshed", SOAP, 'elif phase == "refresh":', 'elif phase == "never":', FAMILY),
    Mutant("second moment not sorted with its basis", SOAP, "v.copy_(v.gather(dim, index))", "pass", FAMILY),
    Mutant("rotated from the wrong side", SOAP, 'return state["left_basis"].mT @ x', 'return state["left_basis"] @ x',
           FAMILY),
    Mutant("wrong Kronecker factor", SOAP, 'ema_(state["left"], g @ g.mT, beta)', 'ema_(state["left"], g.mT @ g, beta)',
           FAMILY),
    Mutant("SOAP corrected for its first step", SOAP, "self.betas, t - 1, self.eps)", "self.betas, t, self.eps)",
           FAMILY),
    Mutant("SOAP-Muon corrected for its first step", SOAP, "self.beta2, t - 1,", "self.beta2, t,", FAMILY),
    Mutant("SOAP-Muon not orthogonalised", SOAP, "else self.polar_each(found)", "else found", FAMILY),
    Mutant("inverse root of the wrong order", SHAMPOO, "self._gathered(t), 4, self.eps)",
           "self._gathered(t), 2, self.eps)",
           FAMILY),
    Mutant("Shampoo from one side", SHAMPOO, '(state["left_root"] @ g @ state["right_root"])',
           '(state["left_root"] @ g)', FAMILY),
    Mutant("Shampoo's averages not corrected", SHAMPOO, "state[side] / self._gathered(t)", "state[side]", FAMILY),
    Mutant("roots not renewed", SHAMPOO, 'if self.phase == "refresh":', "if t == 1:", FAMILY),
    Mutant("size forgotten in an inverse root", "muonlab/kernels/roots.py",
           "root * torch.where(peak > 0, peak, 1.0) ** (-1 / order)", "root", FAMILY),
    Mutant("basis sorted, but not told", "muonlab/kernels/roots.py", "return torch.linalg.qr(unit @ q)[0], order",
           "return torch.linalg.qr(unit @ q)[0], order.sort().values", FAMILY),
    Mutant("factors fitted to one another's side", WHITENING, "(right, a.mT, b.mT)", "(right, a, b)", FAMILY),
    Mutant("factors driven away", WHITENING, "(first - second).triu_()", "(second - first).triu_()", FAMILY),
    Mutant("factors not balanced", WHITENING, "(_peak(right) / _peak(left)).sqrt()", "torch.ones_like(_peak(left))",
           KERNELS),
    Mutant("whitened from one side", WHITENING, "@ (left @ g @ right.mT) @ right", "@ (left @ g)", FAMILY),
    Mutant("probes not renewed", KRON, "self.seed, t, m)", "self.seed, 1, m)", FAMILY),
    Mutant("seed of the probes ignored", KRON, "self.seed, t, m)", "0, t, m)", FAMILY),
    Mutant("size of a whitened update not bounded", KRON, "(found * (MAX_RMS / rms.clamp(min=MAX_RMS)))", "(found)",
           FAMILY),
    Mutant("factors refreshed at every step", KRON, "math.floor(self._refreshes(t)) >",
           "math.floor(self._refreshes(t)) >=",
           FAMILY),
    Mutant("Kron's momentum not corrected", KRON, " / bias_correction(self.momentum, t)", "", FAMILY),
    Mutant("gradients of a stack normalised together", KRON, "math.prod(u.shape[-2:])", "u.numel()", FAMILY),
    Mutant("phase of a step forgotten", "muonlab/optim/rule.py", "return self if phase == self.phase else",
           "return self or",
           FAMILY),
    Mutant("bundle forgets a factor", "muonlab/kernels/bundle.py", "b.tensors, value=value)", "b.tensors)", FAMILY),
    Mutant("state of another matrix", UPDATE, "else state[state_key(name, k)]", "else state[state_key(name, 0)]",
           BLOCKS),
    Mutant("state of a view not written back", UPDATE, "target.copy_(self.views[name].reshape(target.shape))", "pass",
           BLOCKS),
    Mutant("nothing keeps a quotient from NaN", MOMENTS, "else max(eps, smallest)", "else eps", STEPS),
    Mutant("skipped step answers an observation", ENGINE, "self._settle(wait=True)  # a step that was skipped",
           "pass  #", GUARDS),
    Mutant("hyperparameters traced as constants", "muonlab/optim/compiled.py", "[job.traced() for job in jobs]", "jobs",
           f"{OPTIM}/test_compile.py"),
    Mutant("diagnostics move the state", "muonlab/optim/inspection.py", "name: view.clone() for name, view in Matrix",
           "name: view for name, view in Matrix", f"{OPTIM}/test_inspection.py"),
    Mutant("Gram iteration never restarted", "muonlab/kernels/gram.py", "MAX_NOISE = 1e-3", "MAX_NOISE = 1e9", KERNELS),
    Mutant("failed Cholesky trusted", "muonlab/kernels/rational.py", "    if failed.any():\n        failed &=",
           "    if False:\n        failed &=", KERNELS),
    Mutant("symmetric product left half empty", "muonlab/kernels/symmetric.py",
           "out[k, :i, i:j].copy_(panel[:, :i].mT)", "out[k, :i, i:j].zero_()", KERNELS),
    Mutant("norm forgotten in Gram space", "muonlab/kernels/gram.py", ".mul_(norm.rsqrt())", ".mul_(norm)", KERNELS),
    Mutant("pairs alone decide after tuning", SIGNIFICANCE, "math.hypot(math.sqrt(noise), tuning_nats or 0.0)",
           "math.sqrt(noise)", f"{ANALYZE} {STUDY}"),
    Mutant("QK-clip shrinks the wrong share", "muonlab/optim/qk_clip.py", "** (1 - balance)", "** balance", OPTIM),
    Mutant("batch order depends on the batch size", "muonlab/tasks/stream.py", "np.arange(start + 1, start + count + 1",
           "np.arange(count * start + 1, count * start + count + 1", TASKS),
    Mutant("one micro-batch counted twice", LOOP, "first = start + part * self.micro_samples",
           "first = start + max(part - 1, 0) * self.micro_samples", TRAIN),
    Mutant("gradient accumulation not averaged", LOOP, "self.forward, batch) / parts", "self.forward, batch)", TRAIN),
    Mutant("divergence goes unnoticed", LOOP, "if not (math.isfinite(loss) and math.isfinite(norm)):",
           "if not (math.isfinite(loss) or math.isfinite(norm)):", TRAIN),
    Mutant("generators not restored on resume", LOOP, 'restore_rng(values["rng"][self.ranks.data_rank])', "pass",
           TRAIN),
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
    Mutant("one-sided test", SIGNIFICANCE, "2 * stats.t.sf(abs(difference)", "1 * stats.t.sf(abs(difference)", ANALYZE),
    Mutant("one-sided test of pairs", SIGNIFICANCE, "2 * stats.t.sf(abs(mean)", "1 * stats.t.sf(abs(mean)", ANALYZE),
    Mutant("variance of the population, not of the sample", SIGNIFICANCE, "degrees = sum(len(group) - 1 for",
           "degrees = sum(len(group) for", ANALYZE),
    Mutant("speedup inverted", SPEEDUP, "-1.0 / self.exponent)", "1.0 / self.exponent)", ANALYZE),
    Mutant("ladder: p of the losses alone", FOUND, "p_value=max(test.p_value, replicates.p_value)",
           "p_value=test.p_value", LADDERS),
    Mutant("ladder: what tuning is worth upside down", FOUND, "else own.horizon_tokens / reached",
           "else reached / own.horizon_tokens", LADDERS),
    Mutant("ladder: tuning seeds used for the final runs", LADDER, "for seed in self.rules.final_seeds]",
           "for seed in self.rules.tuning.seeds[:len(self.rules.final_seeds)]]", LADDERS),
    Mutant("ladder: what is frozen is tuned again", LADDER, "if start is None or h.name in self.sensitive[name]]", "]",
           LADDERS),
    Mutant("ladder: a law without the length", LADDER, "predict(points, params, tokens, coordinate)",
           "predict(points, params, points[0][1], coordinate)", LADDERS),
    Mutant("a rule broken at one size is not broken", FAIRNESS, "ok = False if False in answers else None", "ok = None",
           LADDERS),
    Mutant("what was not checked is ok", FAIRNESS, 'return Check(name="same_conditions", ok=None,',
           'return Check(name="same_conditions", ok=True,', f"{STUDY}/test_fairness.py"),
    Mutant("units of a joint law on the wrong side", "muonlab/analyze/scaling.py",
           "a + alpha * self.log_params", "a - alpha * self.log_params", f"{ANALYZE}/test_scaling.py"),
    Mutant("law of everybody, not of the baseline", "muonlab/analyze/speedups.py",
           "law_cells = [cell for cell in here if cell.optimizer == baseline]", "law_cells = here",
           f"{ANALYZE}/test_speedups.py"),
    Mutant("a decayed rate taken for one that is not", "muonlab/analyze/audit_runs.py", "if left > UNDECAYED]",
           "if left >= 0]", f"{ANALYZE}/test_audit.py"),
    Mutant("edge where nothing lies beyond", "muonlab/analyze/audit_tuning.py",
           "if 0 < index < len(points) - 1 or _is_natural(one.name, one.best.value, index == 0):",
           "if 0 < index < len(points) - 1:", f"{ANALYZE}/test_audit.py"),
    Mutant("held-out miss cancels nothing", PROFILES, "own = np.where(np.isfinite(t), own, np.inf)", "pass",
           f"{ANALYZE}/test_profiles.py"),
    Mutant("credit of a workload out of scale", PROFILES, "0.0, None) / (r_max - 1)", "0.0, None) / r_max",
           f"{ANALYZE}/test_profiles.py"),
    Mutant("one run asked for, the others forgotten", "muonlab/execute/asking.py", "self.specs = tuple(specs)",
           "self.specs = tuple(specs)[:1]", ASKING),
    Mutant("lines told before the bad one is read", "muonlab/cli/asking.py", "            _agree(record, store)\n",
           "            _agree(record, store)\n            store.put(record)\n", ASKING),
    Mutant("seed missing from the key", "muonlab/records/spec.py", "seed: int = 0  #",
           'seed: int = field(default=0, metadata={"in_key": False})  #', RECORDS),
    Mutant("look-ahead has the noise of plain momentum", "muonlab/analyze/bounds.py", "beta**4 * variance",
           "beta**2 * variance", f"{ANALYZE}/test_bounds.py"),
    Mutant("skewed noise is not centred", "muonlab/tasks/matrix.py", "math.sqrt(p / (1 - p)))", "math.sqrt(p))",
           f"{TASKS}/test_matrix.py"),
    Mutant("a weight's bound forgets the scale of its shape", "muonlab/optim/inspection.py",
           "bound = rule.scale(block.shape) * rule", "bound = rule", f"{OPTIM}/test_boundedness.py"),
    Mutant("the known start left out of a running mean", "studies/four_variants.py", "np.full((len(runs), 1), arm",
           "0 * np.full((len(runs), 1), arm", f"{STUDY}/test_four_variants.py"),
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
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not dist"]
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
