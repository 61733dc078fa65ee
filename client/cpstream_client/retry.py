"""How long to keep trying, and how long to wait in between. No I/O."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import CpstreamError, TransportError, UnavailableError


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential backoff with full jitter, bounded by the time without progress.

    timeout_s: give up after this long without a single batch (0: never retry). first_delay_s, max_delay_s: bounds of the waits,
    doubled from one to the next; a service's Retry-After is waited for in full, even beyond max_delay_s.
    """

    timeout_s: float = 300.0
    first_delay_s: float = 0.1
    max_delay_s: float = 10.0

    def delay_s(self, failures: int, retry_after_s: float | None, random_unit: float) -> float:
        """Seconds to wait after the given number of failures in a row (1, 2, ...). random_unit: in [0, 1)."""
        ceiling = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(failures - 1, 60))
        return max(ceiling * random_unit, retry_after_s or 0.0)


def is_retryable(error: CpstreamError) -> bool:
    return isinstance(error, TransportError | UnavailableError)


@dataclass(slots=True)
class Patience:
    """What is left of a Retry since the last progress. One a request or stream; not shared between threads.

    num_endpoints: after a failure another endpoint is asked at once; waits come only when all have failed.
    """

    retry: Retry
    num_endpoints: int = 1
    clock: Callable[[], float] = time.monotonic
    _failures: int = 0
    _first_failure_s: float = field(default=0.0)

    def progress(self) -> None:
        self._failures = 0

    def wait_s(self, error: CpstreamError) -> float:
        """Seconds to wait before the next try. Raises the error itself when it is final or patience is at its end."""
        now = self.clock()
        if self._failures == 0:
            self._first_failure_s = now
        self._failures += 1
        elapsed = now - self._first_failure_s
        if not is_retryable(error):
            raise error
        if elapsed >= self.retry.timeout_s:
            if self._failures > 1:
                error.add_note(f"gave up after {self._failures} tries in {elapsed:.1f} s without progress")
            raise error
        if self._failures % self.num_endpoints:
            return 0.0
        retry_after_s = getattr(error, "retry_after_s", None)
        wait = self.retry.delay_s(self._failures // self.num_endpoints, retry_after_s, random.random())  # noqa: S311
        return min(wait, self.retry.timeout_s - elapsed)
