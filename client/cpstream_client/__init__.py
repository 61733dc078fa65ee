"""cpstream's client: `Client` for numpy and Arrow; `cpstream_client.torch` for training (needs cpstream[torch])."""

from .client import Client
from .contract.bodies import AlignmentReport, CpsStats, Dropped, PlanStep, RankSamples, Rows, Sample, SplitInfo
from .contract.plan import Plan
from .contract.wire import BatchQuery
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
from .stream.reader import Batch
from .transport.retry import Retry

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
]
