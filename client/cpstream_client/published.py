"""Predictions that a client sends back, and what the service made of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import pyarrow as pa

from .contract.bodies import SplitInfo
from .contract.predictions import RunList, RunReport
from .contract.wire import ARROW_STREAM, FILE_PATH, INDEX, PREDICTED, split_path
from .errors import B

if TYPE_CHECKING:
    import pandas as pd


Sent = tuple[bytes | None, str]
"""A body, and its media type."""
NOTHING: Sent = (None, "")


class Published(ABC):
    """The methods of a client for runs of predictions, over that which asks."""

    @abstractmethod
    def _asked(self, method: str, path: str, kind: type[B], params: Mapping[str, str], sent: Sent = NOTHING) -> B:
        """The JSON that answers a request."""

    def publish(
        self,
        split: str,
        name: str,
        predictions: "pd.DataFrame | Mapping[str, npt.ArrayLike]",
        *,
        info: SplitInfo | None = None,
    ) -> RunReport:
        """Send what a model predicts of a split, under a name, in place of an earlier run of that name; get how well it does.

        predictions: columns `predicted` and `file_path` or `index`; others are passed over. Not every sample needs a row: the
        report says what did not match. info: the split as known, to pin its data. The service needs --state-dir, and the token the
        scope write. Raises ValueError without these columns, InvalidRequestError when nothing matches or no more can be kept.
        """
        params = {"fingerprint": info.fingerprint} if info else {}
        path = split_path(split, "predictions", name)
        return self._asked("PUT", path, RunReport, params, (_stream(predictions), ARROW_STREAM))

    def runs(self, split: str) -> RunList:
        """All runs published for a split as it is now, the best first."""
        return self._asked("GET", split_path(split, "predictions"), RunList, {})

    def run(self, split: str, name: str) -> RunReport:
        """One of them. Raises NotFoundError."""
        return self._asked("GET", split_path(split, "predictions", name), RunReport, {})


def _stream(predictions: Any) -> bytes:
    """The columns that count, as an Arrow stream."""
    names = [name for name in (FILE_PATH, INDEX) if name in predictions][:1]
    if not names or PREDICTED not in predictions:
        held = ", ".join(map(repr, predictions))
        raise ValueError(f"predictions has the columns {held}; it needs {PREDICTED!r}, and {FILE_PATH!r} or {INDEX!r}")
    table = pa.table({name: pa.array(predictions[name]) for name in (*names, PREDICTED)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
