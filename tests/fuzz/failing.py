"""A target that fails in every way that the fuzzer has to notice, run as a process of its own."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from fuzz import runs
from fuzz.target import MOST_BYTES, Target, WrongError


class Failing:
    """Mutation i fails in way i % 6; only the first of those that would hang does."""

    def __init__(self) -> None:
        self._at = 0

    def draw(self, random: Random) -> bytes:
        return random.randbytes(4)

    def accepts(self, data: bytes) -> bool:
        way = WAYS[data]
        if way % 6 == 0:
            return True
        if way % 6 == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if way % 6 == 2:
            raise RecursionError
        if way % 6 == 3:
            raise WrongError("a wrong number was served")
        if way % 6 == 4:
            return len(bytearray(MOST_BYTES + 2**24)) == 0
        if way == 5:
            time.sleep(600)
        return False


@contextmanager
def start(_: None, folder: Path) -> Iterator[Failing]:
    yield Failing()


WAYS = {Random(f"0:failing:{i}").randbytes(4): i for i in range(60)}

if __name__ == "__main__":
    runs.HANG_S = 6.0  # longer than a busy machine stands still
    outcome = runs.run(Target("failing", lambda _: None, start), None, Path(sys.argv[1]), seed=0, count=60, jobs=2)
    counts = " ".join(f"{kind} {count}" for kind, count in sorted(outcome.counts.items()))
    print(f"tried {outcome.tried} accepted {outcome.accepted} {counts} refused {outcome.refused}")
    print(sorted((failure.kind, failure.index % 6) for failure in outcome.failures))
