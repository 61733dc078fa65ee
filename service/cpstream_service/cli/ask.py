"""cpstream info and plan: what a running service says, as tables."""

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpstream_client import Client, Retry
from cpstream_client.contract.bodies import PlanStep, SplitInfo
from cpstream_client.contract.plan import Remainder, Shuffle
from cpstream_client.contract.wire import BatchQuery


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


def info(url: str = "http://localhost:8000", *, token: str | None = None) -> int:
    """Print the splits of a running service as a table.

    **Examples**

    ```
    cpstream info
    cpstream info http://data:8000
    CPSTREAM_TOKEN=secret cpstream info http://data:8000
    ```

    Parameters
    ----------
    url
        Where the service is.
    token
        Bearer token, where the service has one.
    """
    with _client(url, token) as client:
        Console().print(splits_table(client.splits()))
    return 0


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
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    token: str | None = None,
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
    token
        Bearer token, where the service has one.
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
    with _client(url, token) as client:
        audit = client.plan(split, step, query)
    if as_json:
        print(audit.model_dump_json(indent=2))  # noqa: T201
    else:
        Console().print(plan_table(audit))
    return 0


def _client(url: str, token: str | None) -> Client:
    """A client that says at once when it gets no answer: here, a person is waiting."""
    return Client(url, token=token, retry=Retry(timeout_s=0, contact_timeout_s=0))
