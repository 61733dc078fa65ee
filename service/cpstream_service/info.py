"""cpstream info: what a running service serves, as a table."""

from collections.abc import Sequence

from rich.table import Table

from cpstream_client.wire import SplitInfo


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
