"""score: AlgoPerf's score of training algorithms on anybody's times to target."""

from muonlab.cli import options as opt
from muonlab.cli.laboratory import print_json
from muonlab.cli.show import print_parts
from muonlab.cli.tables import Column, Table, read_table

__all__ = ["score"]


def score(path: Table, column: Column = None, json: opt.Json = False) -> None:
    """Score training algorithms by how fast each reaches the targets of many workloads, as AlgoPerf does.

    Columns: submission, workload, time_to_target (in any unit; empty or inf:
    the target was missed). Optional: study and trial, of which the best trial
    of a study and the median of the studies count; base, the workload of which
    a row's workload is a held-out variant: a miss there cancels the base.
    """
    from muonlab.analyze.profiles import score as scored
    from muonlab.analyze.trials import from_rows

    finding = scored(from_rows(read_table(path, column, ("submission", "workload", "time_to_target")), path))
    if json:
        return print_json(finding.to_dict())
    from muonlab.report.profiles import scores_table

    print_parts(scores_table(finding))
