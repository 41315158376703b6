"""The batch studies of studies/batch*.toml: keep their results, and write docs/batch_results.md from those.

muonlab batch text --config studies/batch.toml --store batch.db
muonlab batch text-synthetic --config studies/batch_synthetic.toml --store batch.db
muonlab batch text --config studies/batch_layernorm.toml --store batch.db
muonlab batch digits --config studies/batch_digits.toml --store batch.db
python studies/batch.py --store batch.db      # also keeps the results in studies/batch_results.json.gz
python studies/batch.py                       # writes the page again, from the file alone
"""

import argparse
from dataclasses import replace
from pathlib import Path

from results import Results, asked, found_in, read, write
from writing import checks, interval, table

from muonlab.analyze.batch import BatchFinding
from muonlab.analyze.critical_batch import Estimate
from muonlab.records import Record
from muonlab.records.evidence import BatchEvidence
from muonlab.records.store import Store
from muonlab.report.text import show
from muonlab.study.config import BatchConfig
from muonlab.study.fairness import conclude_batch

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "batch_results.json.gz", HERE.parent / "docs" / "batch_results.md"
REMARKS = {
    "batch_digits": "Tokens are images here, of which there are 1,297: 205 thousand are 158 epochs. A loss that is not "
    "reached in so many may be out of reach because the images are learned by heart, not because of the batch.",
    "batch_layernorm": "Embedding and head are one matrix here. AdamW trains it with the learning rate of everything "
    "else, Muon with that of its auxiliary AdamW; how much of the ratio comes of that was not separated.",
}
STUDIES = {  # file -> task, and what the page says it is
    "batch": ("text", "Code: the sources of Python's standard library"),
    "batch_synthetic": ("text-synthetic", "Another distribution: an invented language"),
    "batch_layernorm": ("text", "Another architecture: LayerNorm and GELU, tied, on the same code"),
    "batch_digits": ("digits", "Images: a plain convolutional network on 8 x 8 digits"),
}


def config_of(name: str) -> BatchConfig:
    return asked(HERE / f"{name}.toml", STUDIES[name][0], BatchConfig)


def keep(url: str) -> None:
    """The studies that a store has, with their records; of tuning runs without curves."""
    kept = read(RESULTS) if RESULTS.exists() else {}
    with Store(url, read_only=True) as store:
        for name in STUDIES:
            if (key := found_in(store, config_of(name), "batch")) is not None:
                found = Results.of_store(store, key, BatchEvidence)
                final = {key for point in found.evidence.points for key in point.cell.keys}
                kept[name] = found.leaner(lambda one, final=final: lean(one, one.key in final)).to_dict()
    write(RESULTS, kept)


def lean(record: Record, final: bool) -> Record:
    """Without curves of training; of tuning runs without any."""
    bare = replace(record, train_steps=(), train_loss=())
    return bare if final else replace(bare, eval_steps=(), eval_loss=(), probes={})


def kept() -> dict[str, Results[BatchEvidence]]:
    found = read(RESULTS)
    return {name: Results.from_dict(found[name], BatchEvidence) for name in STUDIES if name in found}


def estimate(one: Estimate) -> str:
    if one.value is None:
        return "-"
    sign = {"above": "> ", "below": "< "}.get(one.flag, "")
    return f"{sign}{one.value:,.0f} {interval(one.low, one.high, ',.0f')}"


def section(name: str, results: Results[BatchEvidence]) -> list[str]:
    finding = conclude_batch(results.evidence, results.records)
    return [
        f"## {STUDIES[name][1]}",
        "",
        f"**{finding.verdict}**",
        "",
        f"`studies/{name}.toml`: {finding.num_runs} runs, {show(finding.total_tokens, 'tokens')} tokens, "
        f"{results.time}, {results.machine}.",
        "",
        *([REMARKS[name], ""] if name in REMARKS else []),
        "### Token ratio",
        "",
        *ratios(finding),
        "### Critical batch",
        "",
        *critical(finding),
        "### Time on more devices",
        "",
        *dominance(finding),
        "### Settings",
        "",
        *settings(finding),
        "### Checks",
        "",
        *checks(finding.checks),
    ]


def ratios(finding: BatchFinding) -> list[str]:
    times = {(t.optimizer, t.batch_tokens, t.target): t for t in finding.times}
    body = []
    for one in finding.token_ratio:
        pair = [times[name, one.batch_tokens, one.target] for name in (finding.baseline, one.optimizer)]
        said = [
            show(t.tokens, "tokens") if t.tokens else f"not reached in {show(t.horizon_tokens, 'tokens')}" for t in pair
        ]
        ratio = "-" if one.ratio is None else f"{one.ratio:.2f} {interval(one.low, one.high)}"
        body.append((f"{one.target:g}", f"{one.batch_tokens:,}", *said, ratio, one.judgement or one.detail))
    names = (finding.baseline, *(n for n in finding.optimizers if n != finding.baseline))
    heads = ("target", "batch", *(f"tokens, {name}" for name in names), "ratio, 95 %", "")
    lines = table(heads, body)
    for one in finding.trends:
        slope = "undefined" if one.slope is None else f"{one.slope:+.3f} {interval(one.low, one.high, '+.3f')}"
        lines.append(f"* {one.target:g}: log ratio per doubling of the batch {slope}: {one.verdict}.")
    return [*lines, ""]


def critical(finding: BatchFinding) -> list[str]:
    body = [
        (
            one.optimizer, f"{one.target:g}", estimate(one.overhead), estimate(one.sfo), estimate(one.doubling),
            estimate(one.noise_scale), estimate(one.nuclear_noise_scale),
            "-" if one.token_optimal is None else f"{one.token_optimal:,.0f}",
        )
        for one in finding.critical
    ]  # fmt: skip
    heads = (
        "optimizer", "target", "20 % more tokens", "fewest tokens", "twice the tokens", "noise scale",
        "nuclear noise scale", "within 5 % of the fewest, at most",
    )  # fmt: skip
    return table(heads, body)


def dominance(finding: BatchFinding) -> list[str]:
    model = finding.device_model
    body = []
    for one in finding.dominance:
        times = (
            f"{d}: {show(theirs, 'seconds')} / {show(ours, 'seconds')}"
            for d, ours, theirs in zip(one.devices, one.seconds, one.baseline_seconds, strict=True)
        )
        body.append((one.optimizer, f"{one.target:g}", "; ".join(times), one.verdict))
    return [
        f"More than one device is modelled: {model.bandwidth:g} bytes a second between them, "
        f"{model.latency_seconds:g} s latency, no overlap; gradients of a model this small cost nothing to exchange.",
        "",
        *table(("", "target", f"devices: {finding.baseline} / it", "verdict"), body),
    ]


def settings(finding: BatchFinding) -> list[str]:
    body = []
    for one in finding.settings:
        changed = (
            f"{name} {show(one.predicted[name], 'value')}"
            + ("" if value == one.predicted[name] else f" -> **{show(value, 'value')}**")
            for name, value in one.chosen.items()
        )
        step = show(one.step_seconds, "seconds")
        body.append(
            (one.optimizer, f"{one.batch_tokens:,}", ", ".join(changed), show(one.horizon_tokens, "tokens"), step)
        )
    return table(("optimizer", "batch", "by rule -> by search", "length", "step"), body)


def page(found: dict[str, Results[BatchEvidence]]) -> str:
    lines = [
        "# Batch size on small decoders",
        "",
        "Measured by muonlab. Written by `make batch-page` from `studies/batch_results.json.gz`, which holds every",
        "run; `make batch` makes the runs again. What the words mean is in [batch size](batch.md).",
        "",
        "Every model here is tiny, and so are its batches: a critical batch of some hundred tokens is that of a loss",
        "which a decoder of 42 thousand parameters reaches in some hundred thousand tokens. Gradient noise grows as",
        "the loss falls; what the shapes of these curves say may hold at scale, their numbers will not.",
        "",
        "Intervals are those of seeds. What tuning leaves open is not in them, and is more: the first study was made",
        "four times while the rules of its searches were mended, and the token ratio at the smallest batch was 1.40,",
        "1.20, 1.22 and 1.47. AdamW's tokens stayed the same; Muon's were never fewer than in the last",
        "([why](dev/LOG.md)).",
        "",
    ]
    for name, results in found.items():
        lines += section(name, results)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="take the studies of this store")
    arguments = parser.parse_args()
    if arguments.store:
        keep(arguments.store)
    PAGE.write_text(page(kept()))


if __name__ == "__main__":
    main()
