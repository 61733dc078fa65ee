"""What a target of the fuzzer is, and what counts as a failure."""

import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

ROOT = Path(__file__).parents[1]
MOST_BYTES = 300 * 1024**2
"""What reading any file may take beyond 10 times its size."""
MOST_MESSAGE = 2000
"""Characters of an error: it is for a person."""


class WrongError(Exception):
    """What came out is not what must come out: believed though altered, or refused without saying so in one line."""


class Case(Protocol):
    """A target in a worker process. beside_bytes, if it has that: memory that another process took for the last mutation."""

    def draw(self, random: Random) -> bytes:
        """A mutation. All that `accepts` needs is in it, so that it can be kept as a file and be tried again."""

    def accepts(self, data: bytes) -> bool:
        """Whether it is read; False where it is refused as it should be. Anything that this raises is a failure."""


@dataclass(frozen=True)
class Target:
    """prepare(folder): makes the seeds by the real tools, in a process of its own; what it returns is pickled.

    start(seeds, folder): in each worker.
    """

    name: str
    prepare: Callable[[Path], Any]
    start: Callable[[Any, Path], AbstractContextManager[Case]]


def peak_bytes() -> int:
    """The most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_message(error: Exception) -> None:
    """Raises WrongError where the text of an error is not one line that a person can read."""
    text = str(error)
    if not text or "\n" in text or len(text) > MOST_MESSAGE:
        raise WrongError(f"the refusal has {len(text)} characters in {len(text.splitlines())} lines: {text[:200]!r}") from error


def labelled(label: str, content: bytes) -> bytes:
    """A mutation that is more than the content of one file."""
    return label.encode() + b"\n" + content


def parted(data: bytes) -> tuple[str, bytes]:
    label, _, content = data.partition(b"\n")
    return label.decode(), content
