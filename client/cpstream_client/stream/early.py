"""The first request of a far epoch, sent at once with that for the metadata: the first batch comes a round trip earlier.

All that it says is known without the metadata, but for the fingerprint, and that one training batch is a request on a long path. So
it asks for the first batch of whatever data there is. Its reply counts only if the same request would be sent once the metadata is
there, and holds only if it names the fingerprint that the metadata said. A near service only gets a connection more.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import replace

from ..contract.wire import ARROW_STREAM, BatchQuery, split_path, stream_metadata
from ..errors import CpstreamError
from ..transport.asked import Asked
from ..transport.service import Service
from ..transport.sockets import Line
from ..transport.tracing import thread
from .course import Ask
from .request import Request


class Early:
    """One request, for one iteration, on its way to the endpoint whose turn it is. Closing it when it has been taken does nothing.

    A process that is forked meanwhile finds that nothing was sent. query: from the first batch on, of one DataLoader worker.
    """

    def __init__(self, service: Service, split: str, query: BatchQuery, turn: int) -> None:
        self._service, self._endpoint, self._line = service, service.replicas.choose(turn), Line()
        self._path = split_path(split, "batches")
        self._query = replace(query, drop_last=False, limit=1)
        self._sending, self._owner = threading.Lock(), os.getpid()
        self._is_over = False
        self._asked: Asked | None = None
        thread(self._run, name="cpstream-early").start()

    def take(self, ask: Ask) -> Request | None:
        """The request, sent, if it is the one that this asks for; None if it is not, or has not been sent yet and never will be."""
        asked = self._end()
        if asked is None:
            return None
        if (ask.method, ask.path, _of_any_data(ask.params)) != ("GET", self._path, _of_any_data(self._query.to_params())):
            asked.close()
            return None
        said = ask.expected.metadata  # but for the fingerprint in the query that the reply repeats
        counts = int(said["num_rows"]), int(said["num_batches"])
        metadata = stream_metadata(said["split"], said["fingerprint"], self._query, *counts)
        ask = replace(ask, expected=replace(ask.expected, metadata=metadata))
        return Request(self._endpoint, ask, self._line, asked)

    def close(self) -> None:
        asked = self._end()
        if asked is not None:
            self._line.abort()
            asked.close()

    def _end(self) -> Asked | None:
        if os.getpid() != self._owner:  # the connection is the parent's, and so may be the lock
            return None
        with self._sending:
            self._is_over = True
            asked, self._asked = self._asked, None
            return asked

    def _run(self) -> None:
        service = self._service
        try:
            if not service.pace.is_far(service.connect(self._endpoint)):
                return
            with self._sending:
                if not self._is_over:
                    self._asked = service.send(
                        self._endpoint, "GET", self._path, self._query.to_params(), ARROW_STREAM, line=self._line
                    )
        except (CpstreamError, OSError, ValueError):  # whoever asks for the metadata hears of it
            return


def _of_any_data(params: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in params.items() if name != "fingerprint"}
