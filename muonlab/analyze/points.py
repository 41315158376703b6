"""The points of a law, from a table of runs."""

from collections.abc import Sequence

from muonlab.analyze.cells import best_cells, early_notes, lost_notes, named_noise
from muonlab.analyze.runs import Run, ends
from muonlab.analyze.scaling import Point
from muonlab.analyze.significance import Noise, pooled_noise
from muonlab.errors import UsageError

__all__ = ["law_points"]


def law_points(
    runs: Sequence[Run], law: str, noise_nats: float | None = None
) -> tuple[list[Point], Noise | None, list[str]]:
    """Points of a law, the noise that is known of them, and what was left out.

    Of runs that name an optimizer the best configuration at each size and length is a point; else every run is one.

    Raises   UsageError for several optimizers, or several sizes where the law has none
    """
    kept = ends(runs)
    finished = [run for run in kept if run.loss is not None]
    if not finished:
        raise UsageError("no run finished")
    noise = None if noise_nats is None else named_noise(noise_nats)
    _refuse_mixture([run.optimizer for run in finished], "optimizer")
    if law != "chinchilla":
        by_params = all(run.params is not None and run.size == f"{run.params:g}" for run in finished)
        by_params = by_params and all(float(run.size) == run.params for run in finished)
        name = "params" if by_params else "size"
        _refuse_mixture([run.size for run in finished], name, ", or take --law chinchilla")
    if not any(run.optimizer for run in finished):
        points = [Point(run.tokens, run.loss, run.params) for run in finished if run.loss is not None]
        lost = len(kept) - len(finished)
        return points, noise, [*early_notes(runs, kept), *([f"{lost} diverged runs left out"] if lost else [])]
    cells = list(best_cells(kept).values())
    found = pooled_noise([cell.losses for cell in cells])
    points = [Point(cell.tokens, cell.mean, cell.params, len(cell.losses)) for cell in cells]
    return points, noise or (found if found.degrees else None), [*early_notes(runs, kept), *lost_notes(kept)]


def _refuse_mixture(values: Sequence[str], name: str, otherwise: str = "") -> None:
    found = sorted(set(values))
    if len(found) > 1:
        raise UsageError(
            f"there are several values of {name} ({', '.join(found[:8])}): choose one with --where "
            f"{name}={found[0]}{otherwise}"
        )
