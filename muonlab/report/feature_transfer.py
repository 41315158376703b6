"""What a study of features finds on a second task, for the terminal."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from muonlab.analyze.feature_transfer import LINEAR_PROBE, SCRATCH, TransferRow
from muonlab.report.layout import cell, clean, grid, interval
from muonlab.report.text import show

__all__ = ["feature_transfer_table"]


def feature_transfer_table(rows: Sequence[TransferRow], baseline: str) -> list[RenderableType]:
    """The table, and what it does not control; nothing without rows."""
    if not rows:
        return []
    first = rows[-1]
    table = grid(f"Transfer to {clean(first.task)}: {show(first.tokens, 'tokens')} tokens of fine-tuning, all weights")
    of_task = [name for name in ("accuracy",) if any(row.accuracy is not None for row in rows)]
    for heading in ("by", "pretrained with", "loss", *of_task, "lr", f"less {clean(baseline)}'s", ""):
        table.add_column(cell(heading), overflow="fold")
    for way in dict.fromkeys(row.finetuning for row in rows):
        for i, row in enumerate(row for row in rows if row.finetuning == way):
            accuracy = [show(row.accuracy, "share") for _ in of_task]
            lr = "" if row.finetuning == LINEAR_PROBE else show(row.lr, "value") if row.lr is not None else "-"
            head = (cell("" if i else way), cell(row.pretraining))
            table.add_row(*head, show(row.loss, "loss"), *accuracy, lr, _difference(row), _judged(row))
        table.add_section()
    return [table, Text(_notes(), style="dim")]


def _difference(row: TransferRow) -> Text:
    if row.effect is None:
        return cell("")
    ends = interval(row.effect.low, row.effect.high, "signed3", neither="no interval")
    return cell(f"{show(row.effect.difference, 'signed3')}\n{ends}")


def _judged(row: TransferRow) -> str:
    return row.effect.judgement if row.effect else "baseline"


def _notes() -> str:
    return (
        f"Held-out losses on the second task, means over seeds; a run starts from the pretraining of its seed, "
        f"{SCRATCH} from no other. A linear probe reads the last layer as it is, before any fine-tuning. "
        "For each row lr is swept by itself on tuning seeds, and the fine-tuning optimizer keeps what else was tuned "
        "for pretraining. Not controlled: the loss that pretraining reached (the tokens are the same), its weight "
        "decay, and the norm of the weights, to which steps of one lr are small or large."
    )
