"""Which map of a split's embeddings to gather from: that of its file in huge pages, as soon as there is one."""

import logging
import sys
import threading
from weakref import WeakKeyDictionary, WeakSet

from ..snapshot.rewritten import in_huge_pages, is_in_small_pages
from ..snapshot.store import Split
from .gather import Floats

logger = logging.getLogger("cpstream.service")


class Pages:
    """Of the splits that were opened here. `close` ends what goes on in the background."""

    def __init__(self) -> None:
        self._small: WeakSet[Split] = WeakSet()
        self._huge: WeakKeyDictionary[Split, Floats] = WeakKeyDictionary()
        self._stop = threading.Event()

    def open(self, split: Split) -> None:
        """For splits that fit in memory twice, as for a moment they are."""
        if is_in_small_pages(split):
            self._small.add(split)

    def of(self, split: Split) -> Floats:
        """(N, D) float32. The first time that somebody asks, its file is put into huge pages, if it is not in such."""
        if split in self._small:
            self._small.discard(split)
            threading.Thread(target=self._rewrite, args=(split,), name="huge-pages", daemon=True).start()
        return self._huge.get(split, split.embeddings)

    def close(self) -> None:
        self._stop.set()

    def _rewrite(self, split: Split) -> None:
        try:
            self._huge[split] = in_huge_pages(split, self._stop)
        except Exception as error:
            if self._stop.is_set() or sys.is_finalizing():  # when no thread can be started any more, either
                return
            if not isinstance(error, OSError):
                logger.exception("split %r stays as it is", split.name)
                return
            # The disk is full or not ours to write to, or the data is gone.
            logger.info("split %r is not in huge pages, and gathering it takes a third more of the CPU: %s", split.name, error)
