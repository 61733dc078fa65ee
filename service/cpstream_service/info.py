"""cpstream info and plan: what a running service says, as tables."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from cpstream_client.wire import PlanStep, SplitInfo


def splits_table(splits: Sequence[SplitInfo]) -> Table:
    """One row a split."""
    table = Table(title_justify="left")
    table.add_column("split")
    for name in ("samples", "dim", "dtype", "CPS min", "mean", "max", "std", "dropped"):
        table.add_column(name, justify="right")
    table.add_column("fingerprint", overflow="fold")
    for split in splits:
        cps = (f"{value:.2f}" for value in (split.cps.min, split.cps.mean, split.cps.max, split.cps.std))
        counts = (str(split.num_samples), str(split.embedding_dim), split.dtype)
        table.add_row(split.split, *counts, *cps, str(split.num_dropped), split.fingerprint)
    return table


def plan_table(plan: PlanStep) -> Table:
    """One row a sample."""
    title = f"{plan.split}, step {plan.step} of {plan.num_steps}, next start {plan.next_start}"
    table = Table("rank", "index", "CPS", "file path", title=title, title_justify="left")
    for rank in plan.ranks:
        for sample in rank.samples:
            table.add_row(str(rank.rank), str(sample.index), f"{sample.cps:.2f}", Text(sample.file_path or "", overflow="fold"))
    return table
