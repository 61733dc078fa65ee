"""How long to keep trying, and how long to wait in between. No I/O."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from ..errors import (
    CpstreamError,
    DatasetChanged,
    ForeignReplyError,
    ForgottenError,
    NotFoundError,
    TransportError,
    UnavailableError,
    UnreachableError,
)


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential backoff with full jitter, bounded by the time without progress.

    timeout_s: give up after this long without a single batch (0: never retry). first_delay_s, max_delay_s: bounds of the waits,
    doubled from one to the next; a service's Retry-After is waited for in full, even beyond max_delay_s. contact_timeout_s: the
    same as timeout_s for a service that has never answered; raise it where trainers start before the service does.
    changed_timeout_s: the same for data that a service does not hold: where replicas move to other data one after the other,
    another one, or the same in a while, may.
    """

    timeout_s: float = 300.0
    first_delay_s: float = 0.1
    max_delay_s: float = 10.0
    contact_timeout_s: float = 10.0
    changed_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for spec in fields(self):
            if not getattr(self, spec.name) >= 0:  # so that NaN is refused, too
                raise ValueError(f"{spec.name} is {getattr(self, spec.name)}; it must be 0 or more seconds")

    def delay_s(self, failures: int, retry_after_s: float | None, random_unit: float) -> float:
        """Seconds to wait after the given number of failures in a row (1, 2, ...). random_unit: in [0, 1)."""
        ceiling = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(failures - 1, 60))
        return max(ceiling * random_unit, retry_after_s or 0.0)


def is_retryable(error: CpstreamError) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(error, TransportError | UnavailableError) and not isinstance(error, ForeignReplyError | UnreachableError)


def is_certain(error: CpstreamError) -> bool:
    """Whether a refusal is of what was asked: these depend on nothing but the URL, which the problem has echoed.

    Others may come of a header or a body that was damaged on its way; the service cannot know, so such a refusal counts when it
    comes twice.
    """
    return isinstance(error, NotFoundError | DatasetChanged | ForgottenError)


@dataclass(slots=True)
class Patience:
    """What is left of a Retry since the last progress. One a request or stream; not shared between threads.

    num_endpoints: after a failure another endpoint is asked at once; waits come only when all have failed.
    is_contact: no endpoint has ever answered, so that the URL or what was set may be wrong.
    """

    retry: Retry
    num_endpoints: int = 1
    is_contact: bool = False
    clock: Callable[[], float] = time.monotonic
    _failures: int = 0
    _first_failure_s: float = 0.0
    _changed_s: float | None = None
    _refusal: str = ""
    _last: dict[str, CpstreamError] = field(default_factory=dict)

    def progress(self) -> None:
        """The budget is whole again."""
        if self._failures:
            self._failures = 0
            self._refusal, self._changed_s = "", None
            self._last.clear()

    def wait_s(self, error: CpstreamError, endpoint: str = "") -> float:
        """Seconds to wait before the next try. Raises the error when it is final or patience is at its end."""
        now = self.clock()
        if self._failures == 0:
            self._first_failure_s = now
        self._failures += 1
        self._last[endpoint] = error
        # What has led to the service before will do so again: a name that is gone from DNS comes back with the service.
        if isinstance(error, DatasetChanged):
            return self._wait_for_the_data_s(error, endpoint, now)
        if not is_retryable(error) and not (isinstance(error, UnreachableError) and not self.is_contact):
            code = getattr(error, "code", type(error).__name__)
            if is_certain(error) or self._refusal == code or not self.retry.timeout_s:
                raise error
            self._refusal = code
            return 0.0
        elapsed = now - self._first_failure_s
        left = self._timeout_s(error) - elapsed
        if left <= 0:
            raise self._at_the_end(error, endpoint, elapsed)
        if self._failures % self.num_endpoints:
            return 0.0
        retry_after_s = getattr(error, "retry_after_s", None)
        wait = self.retry.delay_s(self._failures // self.num_endpoints, retry_after_s, random.random())  # noqa: S311
        return min(wait, left)

    def _wait_for_the_data_s(self, error: DatasetChanged, endpoint: str, now: float) -> float:
        """All endpoints are asked before it is final."""
        self.is_contact = False  # there is a service
        self._changed_s = now if self._changed_s is None else self._changed_s
        left = min(self.retry.changed_timeout_s, self.retry.timeout_s) - (now - self._changed_s)
        if left <= 0 and (self._failures >= self.num_endpoints or not self.retry.timeout_s):
            raise self._at_the_end(error, endpoint, now - self._first_failure_s)
        if self._failures % self.num_endpoints:
            return 0.0
        return min(self.retry.delay_s(self._failures // self.num_endpoints, None, random.random()), left)  # noqa: S311

    def _timeout_s(self, error: CpstreamError) -> float:
        if isinstance(error, UnavailableError):
            self.is_contact = False  # there is a service, and it has asked for patience
        return min(self.retry.timeout_s, self.retry.contact_timeout_s) if self.is_contact else self.retry.timeout_s

    def _at_the_end(self, error: CpstreamError, endpoint: str, elapsed: float) -> CpstreamError:
        """The same error, with the story of the tries in its text: notes do not survive the way out of a DataLoader worker."""
        if self._failures == 1:
            return error
        text = f"{error}; gave up after {self._failures} tries in {elapsed:.1f} s without progress"
        others = [str(last) for name, last in self._last.items() if name != endpoint]
        if others:
            text += f"; before, at the other endpoints: {'; '.join(others)}"
        if self.is_contact:
            text += "; is the url right, and the service running? Retry(contact_timeout_s=...) waits longer for it to come up"
        final = type(error)(text)
        final.__cause__ = error
        return final
