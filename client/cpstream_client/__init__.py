"""cpstream's client: `Client` for numpy and Arrow; `cpstream_client.torch` for training (needs cpstream[torch])."""

from typing import TYPE_CHECKING

from .client import Client
from .contract.bodies import AlignmentReport, CpsStats, Dropped, PlanStep, RankSamples, Rows, Sample, SplitInfo
from .contract.plan import Plan
from .contract.wire import BatchQuery
from .errors import (
    ContractMismatch,
    CorruptedError,
    CpstreamError,
    DatasetChanged,
    ForeignReplyError,
    ForgottenError,
    InvalidRequestError,
    NotFoundError,
    ServiceError,
    StateMismatch,
    TransportError,
    UnauthorizedError,
    UnavailableError,
    UnmatchedError,
    UnreachableError,
)
from .stream.reader import Batch
from .transport.retry import Retry

__all__ = [
    "AlignmentReport",
    "Batch",
    "BatchQuery",
    "Client",
    "ContractMismatch",
    "CorruptedError",
    "CpsStats",
    "CpstreamError",
    "DatasetChanged",
    "Dropped",
    "ForeignReplyError",
    "ForgottenError",
    "InvalidRequestError",
    "NotFoundError",
    "Plan",
    "PlanStep",
    "RankSamples",
    "Retry",
    "Rows",
    "Sample",
    "ServiceError",
    "SplitInfo",
    "StateMismatch",
    "TransportError",
    "UnauthorizedError",
    "UnavailableError",
    "UnmatchedError",
    "UnreachableError",
    "__version__",
]

__version__: str

if not TYPE_CHECKING:  # for a type checker, a module with __getattr__ has every name

    def __getattr__(name: str) -> str:
        """Of the installed package; looked up when asked for, since that reads files."""
        if name == "__version__":
            from importlib.metadata import version

            return version("cpstream")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
