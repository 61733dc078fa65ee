"""cpstream info and plan: what a running service says. They need the client, and cpstream[cli]."""

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpstream_client import BatchQuery, PlanStep, SplitInfo
from cpstream_client.contract.plan import Remainder, Shuffle

from ..text import plain
from .common import MAX_NAME, AsJson, console, others, table_of
from .way import Way, client_of


def info(url: str = "http://localhost:8000", *, as_json: AsJson = False, way: Way = None) -> int:
    """Print the splits of a running service.

    **Examples**

    ```
    cpstream info
    cpstream info http://data:8000
    cpstream info http://data:8000 --json
    CPSTREAM_TOKEN=secret cpstream info http://data:8000
    ```

    Parameters
    ----------
    url
        Where the service is.
    as_json
        Print a JSON list instead, an object a split.
    """
    with client_of(url, way) as client:
        splits = client.splits()
    if as_json:
        print_json([split.model_dump(mode="json") for split in splits])
    else:
        print_splits(splits, console())
    return 0


def print_splits(splits: Sequence[SplitInfo], to: Console) -> None:
    """A table, one row a split, and below it the fingerprints: each on one line at any width, to be copied."""
    table = table_of("", "split", "samples", "dim", "dtype", "CPS min", "mean", "max", "std", "dropped")
    for split in splits:
        cps = (f"{value:.2f}" for value in (split.cps.min, split.cps.mean, split.cps.max, split.cps.std))
        counts = (f"{split.num_samples:,}", f"{split.embedding_dim:,}", split.dtype)
        table.add_row(others(split.split, MAX_NAME), *counts, *cps, f"{split.num_dropped:,}")
    to.print(table)
    to.print("fingerprint", style="bold")
    for split in splits:
        to.print(Text(plain(f"{split.fingerprint}  {split.split}")), soft_wrap=True)


def print_plan(plan: PlanStep, to: Console) -> None:
    """A row a sample: paths are folded, never cut, since they are what is asked for."""
    title = Text(plain(f"{plan.split}, step {plan.step} of {plan.num_steps}, next start {plan.next_start}"))
    table = Table("rank", "index", "CPS", "file path", title=title, title_justify="left")
    for rank in plan.ranks:
        for sample in rank.samples:
            path = others(sample.file_path or "")
            path.overflow = "fold"
            cps = "" if sample.cps is None else f"{sample.cps:.2f}"
            table.add_row(str(rank.rank), str(sample.index), cps, path)
    to.print(table)


def plan(
    url: str,
    split: str,
    *,
    step: int = 0,
    batch_size: int = 256,
    shuffle: Shuffle = "none",
    seed: int = 0,
    epoch: int = 0,
    world_size: int = 1,
    remainder: Remainder = "pad",
    drop_last: bool = False,
    start: int = 0,
    fingerprint: str | None = None,
    as_json: AsJson = False,
    way: Way = None,
) -> int:
    """Print which samples every rank got, or will get, at one step of an epoch: the recordings behind a loss spike.

    Give what the training script gave to its dataset.

    **Examples**

    ```
    cpstream plan http://data:8000 train --step 1234 --batch-size 32 --shuffle uniform --seed 7 --epoch 3
    cpstream plan http://data:8000 train --step 0 --batch-size 32 --world-size 8 --start 25600 --json
    ```

    Parameters
    ----------
    url
        Where the service is.
    split
        Name of the split.
    step
        Step of the epoch, counted from --start.
    batch_size
        Samples in a batch of one rank.
    shuffle
        Order of the epoch: none, uniform (what shuffle=True is in Python), or blocks.
    seed
        Seed of the permutation.
    epoch
        Epoch, from 0 on.
    world_size
        Number of ranks.
    remainder
        What happens when the ranks do not divide the samples.
    drop_last
        Whether a short last batch is left out.
    start
        Samples of the epoch that all ranks together had consumed before step 0.
    fingerprint
        Of the data that the training had, as its state has it; other data is refused.
    as_json
        Print the service's JSON instead of a table.
    """
    query = BatchQuery(
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        world_size=world_size,
        remainder=remainder,
        drop_last=drop_last,
        start=start,
        fingerprint=fingerprint,
    )
    with client_of(url, way) as client:
        audit = client.plan(split, step, query)
    if as_json:
        print_json(audit.model_dump(mode="json"))
    else:
        print_plan(audit, console())
    return 0


def print_json(body: object) -> None:
    print(json.dumps(body, indent=2, allow_nan=False))  # noqa: T201 - in ASCII, for every terminal and encoding
