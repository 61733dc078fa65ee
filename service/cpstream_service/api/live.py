"""What the service is doing now, from its own counters: of all its workers, not only of the one that is asked."""

import threading
import time
from collections import Counter

from cpstream_client.contract.wire import ErrorCode

from ..page.views.live import Now, Traffic
from .metrics import Metrics

_FRESH_S = 0.5
"""Several look on at once, and each asks every second: the counters of several workers lie in files."""


_TITLES = {code.code: code.title for code in ErrorCode}


class Live:
    """As one worker, of so many, tells it. Safe between threads."""

    def __init__(self, metrics: Metrics, workers: int) -> None:
        self._metrics, self._workers = metrics, workers
        self._lock = threading.Lock()
        self._last: Traffic | None = None

    def traffic(self) -> Traffic:
        """As it is now, or was a moment ago. Reads files: not for the event loop."""
        with self._lock:
            if self._last is None or time.monotonic() - self._last.at_s > _FRESH_S:
                self._last = self._counted()
            return self._last

    def now(self) -> Now:
        """The same with what a page says beside it."""
        return Now(self.traffic(), self._workers, self._metrics.is_of_all_workers, _TITLES)

    def _counted(self) -> Traffic:
        at_s, totals, refusals = time.monotonic(), Counter[str](), Counter[str]()
        for family in self._metrics.traffic():
            for sample in family.samples:
                totals[sample.name] += int(sample.value)
                if sample.name == "cpstream_refusals_total":
                    refusals[sample.labels["code"]] += int(sample.value)
        return Traffic(
            at_s=at_s,
            open_streams=max(totals["cpstream_open_streams"], 0),
            samples=totals["cpstream_samples_total"],
            bytes=totals["cpstream_sent_bytes_total"],
            refusals=dict(refusals.most_common()),
        )
