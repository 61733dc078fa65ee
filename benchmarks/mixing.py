"""How well shuffle="blocks" mixes, against a uniform permutation and against none. `python -m benchmarks.mixing`

The worst case for it is data sorted by what is learned: then neighbours are alike, and a block is of one kind. So samples are
given labels 0..1 by index, and the means of the batches are compared: with a uniform order their standard deviation is that of
independent draws (ratio 1); whatever stays together makes it larger.
"""

import numpy as np
from rich.console import Console
from rich.table import Table

from cpstream_client.contract.plan import BLOCK_ROWS, WINDOW_BLOCKS, Plan, Shuffle

BATCH_SIZE = 256
EPOCHS = 5


def spread_of_batch_means(n: int, shuffle: Shuffle) -> float:
    """Standard deviation of batch means of sorted labels, over that of independent draws."""
    labels = np.linspace(0, 1, n)
    spreads = []
    for epoch in range(EPOCHS):
        plan = Plan(n=n, batch_size=BATCH_SIZE, shuffle=shuffle, seed=1, epoch=epoch, drop_last=True)
        means = labels[plan.order()[: plan.num_steps * BATCH_SIZE]].reshape(-1, BATCH_SIZE).mean(axis=1)
        spreads.append(means.std())
    return float(np.mean(spreads) / (labels.std() / np.sqrt(BATCH_SIZE)))


def block_mates(n: int, shuffle: Shuffle) -> float:
    """How many of the other samples of a sample's batch come from its own block, on average."""
    plan = Plan(n=n, batch_size=BATCH_SIZE, shuffle=shuffle, seed=1, drop_last=True)
    blocks = plan.order()[: plan.num_steps * BATCH_SIZE].reshape(-1, BATCH_SIZE) // BLOCK_ROWS
    counts = [np.unique(batch, return_counts=True)[1] for batch in blocks]
    return float(np.mean([(count * (count - 1)).sum() / BATCH_SIZE for count in counts]))


def main() -> None:
    table = Table(
        "samples",
        "order",
        "spread of batch means (independent draws: 1)",
        "samples of one's own block in a batch",
        title=f"batch {BATCH_SIZE}, blocks of {BLOCK_ROWS}, windows of {BLOCK_ROWS * WINDOW_BLOCKS}, labels sorted",
    )
    for n in (20_000, 200_000, 1_000_000):
        for shuffle in ("uniform", "blocks", "none"):
            table.add_row(f"{n:,}", shuffle, f"{spread_of_batch_means(n, shuffle):.2f}", f"{block_mates(n, shuffle):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
