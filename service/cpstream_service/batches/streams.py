"""How many streams are open, of batches and of files, and whose they are: what bounds them, and what chunks are sized by."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from ..errors import Overloaded, TooManyStreams
from ..settings import ServeSettings
from .limits import Limits


class Streams:
    """Those of one process. limits: those that the workers of a service share, or None where there is one."""

    def __init__(self, settings: ServeSettings, limits: Limits | None) -> None:
        self.count = 0
        self._settings, self._limits = settings, limits
        self._of: Counter[str] = Counter()

    def of(self, client: str) -> int:
        """How many one client has."""
        return self._of[client]

    @contextmanager
    def open(self, client: str, most: int | None) -> Iterator[None]:
        """Within, one more is open, of this client's.

        most: that this client may have of the service, where it has a limit of its own. Raises TooManyStreams, Overloaded.
        """
        of_client = self._of[client]
        limit = self._settings.max_streams_per_client if most is None else most
        limits = None if most is None else self._limits
        with nullcontext(of_client < limit) if limits is None else limits.stream(client, limit) as is_allowed:
            if not is_allowed:
                whose = "one client may have (--max-streams-per-client)" if most is None else "it may have (max_streams)"
                has = f"{max(of_client, limit)} streams of {client} are open"
                raise TooManyStreams(f"{has}, as many as {whose}; close some, or ask again in a second")
            if self.count >= self._settings.max_streams:
                raise Overloaded(f"{self.count} batch streams are open, as many as allowed; ask again in a second")
            self.count += 1
            self._of[client] += 1
            try:
                yield
            finally:
                self.count -= 1
                self._of[client] -= 1
                if not self._of[client]:
                    del self._of[client]
