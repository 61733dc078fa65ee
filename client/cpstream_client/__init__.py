"""cpstream's client: `Client` for numpy and Arrow; `cpstream_client.torch` for training (needs cpstream[torch])."""

from .errors import (
    CorruptedError,
    CpstreamError,
    DatasetChanged,
    InvalidRequestError,
    NotFoundError,
    ServiceError,
    StateMismatch,
    TransportError,
    UnauthorizedError,
    UnavailableError,
)
from .http import Client
from .plan import Plan
from .reader import Batch
from .retry import Retry
from .wire import AlignmentReport, BatchQuery, CpsStats, Dropped, SplitInfo

__all__ = [
    "AlignmentReport",
    "Batch",
    "BatchQuery",
    "Client",
    "CorruptedError",
    "CpsStats",
    "CpstreamError",
    "DatasetChanged",
    "Dropped",
    "InvalidRequestError",
    "NotFoundError",
    "Plan",
    "Retry",
    "ServiceError",
    "SplitInfo",
    "StateMismatch",
    "TransportError",
    "UnauthorizedError",
    "UnavailableError",
]
