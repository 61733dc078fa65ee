"""Progress bars for what may take long; they appear after two seconds, on a terminal only."""

import sys

from tqdm import tqdm

DELAY_S = 2.0


def progress_bar(what: str, total: int) -> "tqdm[None]":
    """A bar that counts samples. Silent where standard error is no terminal, as in a job's log."""
    return tqdm(
        total=total, desc=what, unit=" samples", unit_scale=True, delay=DELAY_S, leave=False, disable=not sys.stderr.isatty()
    )
