"""How far loading is: for a terminal as a bar, and for whoever listens in this process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

Listener = Callable[[str, int | None, int | None], None]
"""Is called with the phase, the rows so far and how many there are, as far as they are known."""
_EVERY_S = 0.2
_OFTEN_S = 0.5

_listener: Listener | None = None
_phase, _next_s = "", 0.0


def listen(listener: Listener) -> None:
    """Have the listener told from now on: of each phase when it begins, and then a few times a second."""
    global _listener
    _listener = listener


def tell(phase: str, rows: int | None = None, total: int | None = None) -> None:
    """Say what is being done. Costs next to nothing where nobody listens."""
    global _phase, _next_s
    if _listener is None:
        return
    now = time.monotonic()
    if phase != _phase or now >= _next_s:
        _phase, _next_s = phase, now + _EVERY_S
        _listener(phase, rows, total)


@contextmanager
def telling(phase: Callable[[], str]) -> Iterator[None]:
    """Say what phase() is, every now and then, while this thread waits for something. No thread where nobody listens."""
    done = threading.Event()

    def tell_often() -> None:
        tell(phase())
        while not done.wait(_OFTEN_S):
            tell(phase())

    thread = threading.Thread(target=tell_often, name="progress", daemon=True)
    if _listener is not None:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.ident is not None:
            thread.join()


class Bar(tqdm):  # type: ignore[misc] # it has no types
    """A tqdm that tells of its rows, shown or not. phase: what is told; by default, that `name` is read."""

    def __init__(self, rows: Any, name: str, total: int | None = None, *, phase: str = "", **shown: Any) -> None:
        super().__init__(rows, name, total, **shown)
        self._phase, self._rows, self._total = phase or f"reading {name}", 0, total
        tell(self._phase, 0, total)

    def update(self, n: int = 1) -> None:
        self._rows += n
        tell(self._phase, self._rows, self._total)
        super().update(n)

    def __iter__(self) -> Iterator[Any]:
        for number, row in enumerate(super().__iter__()):  # which calls update only where the bar is shown
            tell(self._phase, number, self._total)
            yield row
