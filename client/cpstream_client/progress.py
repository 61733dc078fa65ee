"""How far a download is, for a person at a terminal."""

import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from .stream.reader import Batch

DELAY_S = 2.0


def shown(batches: Iterable[Batch], what: str, total: int) -> Iterator[Batch]:
    """The batches, with a bar that counts their samples once it takes longer than 2 s; silent where stderr is no terminal."""
    is_silent = sys.stderr is None or not sys.stderr.isatty()
    with tqdm(total=total, desc=what, unit=" samples", unit_scale=True, delay=DELAY_S, leave=False, disable=is_silent) as bar:
        for batch in batches:
            yield batch
            bar.update(batch.num_rows)
