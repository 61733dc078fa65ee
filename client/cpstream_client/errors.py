"""What can go wrong, as exceptions.

    CpstreamError
    ├── TransportError          retried: the connection failed, stalled, was cut or delivered damaged bytes
    │   └── CorruptedError      a checksum, a row count or a frame is wrong
    ├── ServiceError            the service answered with a problem (code, status, detail, request_id, url)
    │   ├── UnavailableError    retried: overloaded, not-ready, draining (503), a gateway's 502/503/504, internal (500)
    │   ├── UnauthorizedError   401: no token, or a wrong one
    │   ├── NotFoundError       404: unknown split or path
    │   ├── InvalidRequestError 405, 406, 413, 416, 422: the request itself is wrong
    │   └── DatasetChanged      409: other data than the one pinned; .expected and .actual are fingerprints
    └── StateMismatch           load_state_dict: the state belongs to other data, another split, seed or shuffle

The text of an error that came over the network ends with the URL and the request id, as the service's log has them.
"""

from .wire import ErrorCode, Problem


class CpstreamError(Exception):
    """Base of everything that cpstream raises on purpose."""


class TransportError(CpstreamError):
    """Bytes did not arrive, or not as they were sent. The client has already retried as often as it may."""


class CorruptedError(TransportError):
    """Bytes arrived damaged: a wrong checksum, row count or frame."""


class ServiceError(CpstreamError):
    """The service answered with a problem. code: the wire's error code; status: HTTP; retry_after_s: seconds or None."""

    def __init__(self, problem: Problem, url: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{problem.detail} [{problem.status} {problem.code}; {url}; request {problem.request_id or 'unknown'}]")
        self.problem = problem
        self.code = problem.code
        self.status = problem.status
        self.detail = problem.detail
        self.request_id = problem.request_id
        self.url = url
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type["ServiceError"], tuple[Problem, str, float | None]]:
        return type(self), (self.problem, self.url, self.retry_after_s)  # DataLoader workers send exceptions by pickle


class UnavailableError(ServiceError):
    """The service cannot answer now; the same request may succeed later."""


class UnauthorizedError(ServiceError):
    """The token is missing or wrong."""


class NotFoundError(ServiceError):
    """No such split or path."""


class InvalidRequestError(ServiceError):
    """The request itself is wrong; asking again cannot help."""


class DatasetChanged(ServiceError):
    """The service holds other data than the one pinned. expected, actual: fingerprints."""

    @property
    def expected(self) -> str:
        return str(self.problem.extra.get("expected", ""))

    @property
    def actual(self) -> str:
        return str(self.problem.extra.get("actual", ""))


class StateMismatch(CpstreamError):
    """A state_dict belongs to other data, another split, seed or shuffle."""


_BY_CODE: dict[str, type[ServiceError]] = {
    ErrorCode.UNKNOWN_SPLIT.code: NotFoundError,
    ErrorCode.NOT_FOUND.code: NotFoundError,
    ErrorCode.METHOD_NOT_ALLOWED.code: InvalidRequestError,
    ErrorCode.INVALID_PARAMETER.code: InvalidRequestError,
    ErrorCode.INDEX_OUT_OF_RANGE.code: InvalidRequestError,
    ErrorCode.RANGE_NOT_SATISFIABLE.code: InvalidRequestError,
    ErrorCode.NOT_ACCEPTABLE.code: InvalidRequestError,
    ErrorCode.PAYLOAD_TOO_LARGE.code: InvalidRequestError,
    ErrorCode.DATASET_CHANGED.code: DatasetChanged,
    ErrorCode.UNAUTHORIZED.code: UnauthorizedError,
    ErrorCode.OVERLOADED.code: UnavailableError,
    ErrorCode.NOT_READY.code: UnavailableError,
    ErrorCode.DRAINING.code: UnavailableError,
    ErrorCode.INTERNAL.code: UnavailableError,
}


def error_of(problem: Problem, url: str, retry_after_s: float | None = None) -> ServiceError:
    """The exception of a problem, chosen by its code."""
    return _BY_CODE.get(problem.code, ServiceError)(problem, url, retry_after_s)
