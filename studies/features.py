"""The studies of studies/features_*.toml: keep their results, and write docs/features_results_*.md from those.

muonlab features digits --config studies/features_digits.toml --store features.db
muonlab features text --config studies/features_text.toml --store features.db
muonlab features text --config studies/features_text_short.toml --store features.db
muonlab features text --config studies/features_text_wide.toml --store features.db --workers 14    # on a GPU
muonlab features fashion-mnist --data FILE.npz --config studies/features_fashion.toml --store features.db
python studies/features.py --store features.db     # also keeps the results in studies/features_*.json.gz
python studies/features.py                         # writes the pages again, from the files alone
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from results import Results, asked, found_in, read, write
from writing import checks, interval, sheet, table

from muonlab.analyze.feature_looks import CONDITIONS
from muonlab.analyze.features import MEASURES, FeaturesFinding
from muonlab.analyze.findings import Check, Effect
from muonlab.analyze.likeness import Spread
from muonlab.records import Record
from muonlab.records.features import FeaturesEvidence
from muonlab.records.record import Series
from muonlab.records.store import Store
from muonlab.report import features_figures
from muonlab.report.axes import marks
from muonlab.report.canvas import Drawing, looks_of
from muonlab.report.features import HELD, WHERE
from muonlab.report.text import plural, show
from muonlab.study.config import FeaturesConfig
from muonlab.study.features_fairness import conclude_features

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
STUDIES = {  # of a file -> task, and what the page says it is
    "digits": ("digits", "a small vision transformer on 8 x 8 digits"),
    "text": ("text", "a small decoder on the sources of Python's standard library"),
    "text_short": ("text", "the same decoder, a quarter of the steps"),
    "text_wide": ("text", "a decoder four times as wide, on longer sequences"),
    "fashion": ("fashion-mnist", "a small convolutional network on Fashion-MNIST"),
}
DIGITS = 6  # of what is measured, as kept


def results_of(name: str) -> Path:
    return HERE / f"features_{name}.json.gz"


def config_of(name: str) -> FeaturesConfig:
    return asked(HERE / f"features_{name}.toml", STUDIES[name][0], FeaturesConfig)


def keep(url: str) -> None:
    """Of each study the latest that a store has, with its records."""
    with Store(url, read_only=True) as store:
        for name in STUDIES:
            if (key := found_in(store, config_of(name), "features")) is not None:
                found = Results.of_store(store, key, FeaturesEvidence)
                final = found.evidence.final_seeds
                kept = found.leaner(lambda one, final=final: lean(one, one.spec.seed in final))
                write(results_of(name), kept.to_dict())


def lean(record: Record, final: bool) -> Record:
    """Without curves of training; of tuning runs the final loss alone."""
    bare = replace(record, train_steps=(), train_loss=())
    if not final:
        return replace(bare, eval_steps=(), eval_loss=(), probes={}, grams={})
    probes = {name: Series(one.steps, tuple(float(f"{v:.{DIGITS}g}") for v in one.values))
              for name, one in record.probes.items()}  # fmt: skip
    return replace(bare, probes=probes)


def kept(name: str) -> tuple[FeaturesFinding, Results[FeaturesEvidence]]:
    found = Results.from_dict(read(results_of(name)), FeaturesEvidence)
    return conclude_features(found.evidence, found.records), found


def figures(finding: FeaturesFinding) -> dict[str, tuple[str, list[Drawing]]]:
    """By name: what it shows, and its panels."""
    look = looks_of(finding.optimizers, finding.baseline)
    bars = (
        "bars are 95 % intervals of the paired difference, each for itself, drawn from the baseline's mean on; filled: "
        "resolved after correction for all of them, so that a bar may miss that mean and be hollow"
    )
    found = {
        "rise": (f"Rise of the loss over all corruptions; {bars}", features_figures.robustness(finding, look, "rise")),
        "accuracy": (f"Accuracy over all corruptions; {bars}", features_figures.robustness(finding, look, "accuracy")),
        "rank": (f"Effective rank by layer; {bars}", features_figures.layers(finding, look, "rank_effective")),
        "margin": (f"Normalised margin by layer; {bars}", features_figures.layers(finding, look, "margin_normalised")),
        "cka": (
            "CKA by layer: to the baseline at the same seed (filled) and at others (hollow), and of two seeds of one "
            "optimizer (crosses); bars from the least to the greatest",
            features_figures.likeness(finding, look),
        ),
    }
    return {name: (text, drawings) for name, (text, drawings) in found.items() if drawings}


def page(name: str, finding: FeaturesFinding, results: Results[FeaturesEvidence]) -> str:
    drawn = {what: [f"![{text.partition(';')[0]}](features_results_{name}_{what}.svg)", "", f"{text}.", ""]
             for what, (text, _) in figures(finding).items()}  # fmt: skip
    lines = [
        f"# Features: {STUDIES[name][1]}",
        "",
        f"Written by `python studies/features.py` from `studies/features_{name}.json.gz`, which holds every run;",
        "`make features` makes the runs again. What the words mean is in [features](features.md): all definitions are",
        "ours, so this neither reproduces nor refutes a paper.",
        "",
        f"**{finding.verdict}**",
        "",
        *(f"**The rule `{check.name}` is broken**: {check.detail}.\n" for check in broken(finding)),
        f"{shape(name, results)}.",
        "",
        f"`studies/features_{name}.toml`: {finding.num_runs} runs, {show(finding.total_tokens, 'tokens')} tokens, "
        f"{results.time}, looks aside, {results.machine}. "
        f"Final runs on seeds {', '.join(map(str, finding.final_seeds))}, {show(finding.horizon_tokens, 'tokens')} "
        f"{'tokens' if finding.task == 'text' else 'images'} each.",
        "",
        "## Claims",
        "",
        *claims(finding),
        *(f"* At the same loss {name} is looked at against {finding.baseline} after: {shares(by)}."
          for name, by in finding.fractions.items()),
        "",
        "## Losses and settings",
        "",
        *losses(finding),
    ]  # fmt: skip
    if finding.severities:
        lines += ["## Under corruption", "", *drawn["rise"], *drawn.get("accuracy", ()), *robustness(finding)]
    lines += ["## Layers", "", *drawn.get("rank", ()), *drawn.get("margin", ()), *layers(finding)]
    if finding.cka:
        lines += ["## Likeness", "", *drawn["cka"], *likeness(finding)]
    if finding.transfer:
        lines += [f"## Transfer to {finding.transfer[0].task}", "", *transfer(finding)]
    return "\n".join([*lines, "## Checks", "", *checks(finding.checks)])


def overview(found: Mapping[str, FeaturesFinding], shapes: Mapping[str, str]) -> str:
    """What held, in all studies beside each other."""
    sizes = (
        f"* `{name}`, [{STUDIES[name][1]}](features_results_{name}.md): {shapes[name]}; {finding.num_runs} runs, final "
        f"ones on {plural(len(finding.final_seeds), 'seed')}."
        + "".join(f" **The rule `{check.name}` is broken.**" for check in broken(finding))
        for name, finding in found.items()
    )
    return "\n".join([
        "# Which claims about features held",
        "",
        "Written by `python studies/features.py` from the files of the studies. The claims are those of",
        '"Muon Learns More Robust and Transferable Features than Adam" as its abstract makes them; the',
        "[definitions](features.md) are ours, the models small, so this neither reproduces nor refutes the paper.",
        "",
        *sizes,
        "",
        "Of Muon, at the same held-out loss:",
        "",
        *summary(list(found.values())),
        "",
        "In bold what is so at the same held-out loss, which is the fairer question; then, in this order: after the",
        "same tokens; without weight decay after the same tokens; without it at the same loss. *yes*: resolved in",
        "every layer, or over all corruptions, by paired tests that are corrected for their number; *no*: resolved the",
        "other way in one layer or over all; *open*: neither.",
        "",
        *table(("", "claim", *found), answers(list(found.values()))),
        *(f"`{name}`, held-out loss on {finding.transfer[0].task}: {'; '.join(transferred(finding))}."
          for name, finding in found.items() if finding.transfer),
        "",
    ])  # fmt: skip


def summary(found: Sequence[FeaturesFinding]) -> list[str]:
    """How often each claim of Muon held."""
    claims = [one for finding in found for one in finding.claims if one.optimizer == "muon" and one.at == "loss"]
    lines = []
    for what in dict.fromkeys(one.claim for one in claims):
        said = [HELD[one.held] for one in claims if one.claim == what]
        counts = ", ".join(f"{word} in {said.count(word)}" for word in HELD.values() if word in said)
        lines.append(f"* {what}: {counts} of {len(said)} studies.")
    return lines


def transferred(finding: FeaturesFinding) -> Iterable[str]:
    """For each way of reading what was learned, the losses by what learned it."""
    for way in dict.fromkeys(row.finetuning for row in finding.transfer):
        own = (f"{row.pretraining} {show(row.loss, 'loss')}" for row in finding.transfer if row.finetuning == way)
        yield f"by {way} after {', '.join(own)}"


def broken(finding: FeaturesFinding) -> list[Check]:
    return [check for check in finding.checks if check.ok is False]


def shape(name: str, results: Results[FeaturesEvidence]) -> str:
    """The model, as far as it was asked for, and the length of a run, in words."""
    spec, asked_for = next(iter(results.records.values())).spec, config_of(name).settings
    options = ", ".join(
        f"{key.removeprefix('task.')} {value}" for key, value in asked_for.items() if "eval_" not in key
    )
    unit = "tokens" if spec.task == "text" else "images"
    size = f"{show(results.num_params, 'tokens')} parameters ({options})"
    return f"{size}, {spec.num_steps} steps of {spec.batch_tokens} {unit}"


def answers(found: Sequence[FeaturesFinding]) -> list[tuple[str, ...]]:
    """A row for each optimizer and claim, a column for each study."""
    rows = []
    for who, what in dict.fromkeys((claim.optimizer, claim.claim) for finding in found for claim in finding.claims):
        said = []
        for finding in found:
            own = {one.at: HELD[one.held] for one in finding.claims if (one.optimizer, one.claim) == (who, what)}
            rest = [own[at] for at in CONDITIONS if at in own and at != "loss"]
            first = f"**{own['loss']}**" if "loss" in own else "-" if not own else ""
            said.append("; ".join(filter(None, (first, ", ".join(rest)))))
        rows.append((who, what, *said))
    return sorted(rows, key=lambda row: row[0] != "muon")


def claims(finding: FeaturesFinding) -> list[str]:
    """A row for each challenger and claim, a column for each condition."""
    found = {(claim.optimizer, claim.claim, claim.at): claim for claim in finding.claims}
    body = []
    for name, text in dict.fromkeys((claim.optimizer, claim.claim) for claim in finding.claims):
        own = [found.get((name, text, at)) for at in CONDITIONS]
        body.append((name, text, *("-" if one is None else f"**{HELD[one.held]}**: {one.detail}" for one in own)))
    return table(("", "claim", *(WHERE[at] for at in CONDITIONS)), body)


def shares(by: dict[str, float | None]) -> str:
    return ", ".join(f"{show(share, 'share')} of the run of {who}" for who, share in by.items())


def losses(finding: FeaturesFinding) -> list[str]:
    body = []
    for name in finding.optimizers:
        for decay, by, chosen in (
            ("as tuned", finding.losses, finding.hyperparameters),
            ("none", finding.control_losses, finding.control_hyperparameters),
        ):
            settings = ", ".join(f"{key} {show(value, 'value')}" for key, value in chosen[name].items())
            body.append((name, decay, " ".join(show(loss, "loss") for loss in by[name]), settings))
    return table(("optimizer", "decay", "final held-out losses, nats", "settings"), body)


def robustness(finding: FeaturesFinding) -> list[str]:
    """Over all corruptions in every condition; then by corruption at the same loss."""
    ratios = {(one.optimizer, one.at): one for one in finding.errors}
    body = []
    for row in (row for row in finding.severities if not row.severity):
        cells = [row.optimizer, WHERE[row.at], f"{pair(row.rise, row.baseline_rise, 'value3')}", difference(row.effect)]
        if row.drop_effect:
            one = ratios[row.optimizer, row.at]
            cells += [pair(row.accuracy, row.baseline_accuracy, "share"), pair(row.drop, row.baseline_drop, "share")]
            cells += [
                difference(row.drop_effect, ".1%"),
                f"{show(one.ratio, 'ratio')} {interval(one.low, one.high)} {one.effect.judgement}",
            ]
        body.append(cells)
    heads = ["", "where", f"rise, it / {finding.baseline}", "difference"]
    if finding.errors:
        heads += ["accuracy", "of it lost", "difference", "error / baseline's"]
    lines = ["Over all corruptions and severities:", "", *table(heads, body)]
    lines += ["Rise of the loss at the same held-out loss, by severity:", "", *by_corruption(finding, "rise", "value3")]
    if finding.errors:
        lines += ["Accuracy there:", "", *by_corruption(finding, "accuracy", "share")]
    return lines


def by_corruption(finding: FeaturesFinding, quantity: str, kind: str) -> list[str]:
    rows = [row for row in finding.corruptions if row.at == "loss"]
    severities = sorted({row.severity for row in rows})
    found = {(row.optimizer, row.corruption, row.severity): row for row in rows}
    body = []
    for name, corruption in dict.fromkeys((row.optimizer, row.corruption) for row in rows):
        own = (found[name, corruption, severity] for severity in severities)
        cells = (pair(getattr(row, quantity), getattr(row, f"baseline_{quantity}"), kind) for row in own)
        body.append((name, corruption, *cells))
    return table(("", "corruption", *map(str, severities)), body)


def layers(finding: FeaturesFinding) -> list[str]:
    shown = (row for row in finding.layers if row.at in CONDITIONS[:2] and row.measure in MEASURES)
    body = (
        (row.optimizer, row.layer, MEASURES[row.measure], WHERE[row.at],
         pair(row.value, row.baseline_value, "value3"), difference(row.effect, ".3g"))
        for row in sorted(shown, key=lambda row: finding.optimizers.index(row.optimizer))
    )  # fmt: skip
    return table(("", "layer", "measure", "where", f"it / {finding.baseline}", "difference"), body)


def likeness(finding: FeaturesFinding) -> list[str]:
    body = (
        (row.optimizer, row.layer, "as tuned" if row.at == "budget" else "none",
         *map(spread, (row.same_seed, row.other_seeds, row.own_seeds, row.baseline_seeds)))
        for row in finding.cka
    )  # fmt: skip
    heads = ("", "layer", "decay", "same seed", "other seeds", "two seeds of it", f"two of {finding.baseline}")
    return table(heads, body)


def transfer(finding: FeaturesFinding) -> list[str]:
    body = (
        (row.finetuning, row.pretraining, show(row.loss, "loss"), show(row.accuracy, "share"), row.num_seeds,
         "baseline" if row.effect is None else difference(row.effect))
        for row in finding.transfer
    )  # fmt: skip
    heads = ("by", "pretrained with", "held-out loss", "accuracy", "seeds", f"less that of {finding.baseline}")
    return table(heads, body)


def spread(one: Spread) -> str:
    return f"{show(one.mean, 'bare')} {interval(one.least, one.greatest)}"


def pair(value: float | None, baseline: float | None, kind: str) -> str:
    return f"{show(value, kind)} / {show(baseline, kind)}"


def difference(one: Effect, kind: str = ".4f") -> str:
    if one.difference is None or one.low is None:
        return f"{one.num_pairs} pairs: no test"
    return f"{format(one.difference, '+' + kind)} {interval(one.low, one.high, '+' + kind)} {one.judgement}"


def publish(names: Iterable[str]) -> None:
    found, shapes = {}, {}
    for name in names:
        finding, results = kept(name)
        found[name], shapes[name] = finding, shape(name, results)
        (DOCS / f"features_results_{name}.md").write_text(page(name, finding, results))
        legend = marks(looks_of(finding.optimizers, finding.baseline))
        for what, (_, drawings) in figures(finding).items():
            (DOCS / f"features_results_{name}_{what}.svg").write_text(sheet(drawings, legend))
    (DOCS / "features_results.md").write_text(overview(found, shapes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="take studies of this store")
    arguments = parser.parse_args()
    if arguments.store:
        keep(arguments.store)
    publish(name for name in STUDIES if results_of(name).exists())


if __name__ == "__main__":
    main()
