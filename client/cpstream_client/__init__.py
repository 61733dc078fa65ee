"""cpstream's client: `Client` for numpy and Arrow; `cpstream_client.torch` for training (needs cpstream[torch]).

Each name is loaded when it is first asked for: the service, which has the contract from here, needs no client.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
_BODIES = "AlignmentReport CpsStats Dropped PlanStep RankSamples Rows Sample SplitInfo"
_ELSEWHERE = dict.fromkeys(_BODIES.split(), ".contract.bodies") | {
    "Batch": ".stream.reader",
    "BatchQuery": ".contract.wire",
    "Client": ".client",
    "Plan": ".contract.plan",
    "Retry": ".transport.retry",
}
"""Where names are from that are not of errors.py."""

if not TYPE_CHECKING:  # for a type checker, a module with __getattr__ has every name

    def __getattr__(name: str) -> object:
        if name == "__version__":  # of the installed package; looked up when asked for, since that reads files
            from importlib.metadata import version

            return version("cpstream")
        if name in __all__:
            found = globals()[name] = getattr(import_module(_ELSEWHERE.get(name, ".errors"), __name__), name)
            return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
