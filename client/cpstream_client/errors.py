"""What can go wrong, as exceptions.

    CpstreamError
    ├── TransportError          retried: the connection failed, stalled, was cut or delivered damaged bytes
    │   ├── CorruptedError      a checksum, a row count or a frame is wrong
    │   │   └── ForeignReplyError   final: something else than a cpstream service answered, such as a login page, or a member of its
    │   │                           JSON is wrong although it arrived as it was sent
    │   │       └── ContractMismatch    final: client and service do not understand each other; the text says what to install
    │   └── UnreachableError    final: an untrusted certificate, a proxy that refuses, a host that does not resolve
    ├── ServiceError            the service answered with a problem (code, status, detail, request_id, url)
    │   ├── UnavailableError    retried: the service's own 408, 429 and 503, a gateway's 429/502/503/504, internal (500)
    │   ├── UnauthorizedError   401, 403: no token, a wrong one, or one that lacks the scope
    │   ├── NotFoundError       404: unknown split or path
    │   ├── InvalidRequestError 405, 406, 413, 416, 422: the request itself is wrong
    │   ├── DatasetChanged      409: other data than the one pinned; .expected and .actual are fingerprints
    │   └── ForgottenError      410: the data pinned holds a recording that was forgotten; what was kept of it is deleted
    ├── StateMismatch           load_state_dict: the state belongs to other data, another split, seed or shuffle
    └── UnmatchedError          join: the frame does not have exactly one row for each sample; .missing and .unknown

The text of an error that came over the network ends with the URL and the request id, as the service's log has them.
"""

import re
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from .contract.bodies import Problem
from .contract.wire import ErrorCode

B = TypeVar("B", bound=BaseModel)

_ORIGIN: Final = re.compile(
    r" \[(?P<status>\d{3}) (?P<code>[\w-]+); (?P<url>\S+); request (?P<request_id>[^\s;\]]+)"
    r"(?:; expected (?P<expected>[^\s;\]]+), actual (?P<actual>[^\s;\]]+))?\]"
)
"""How the text of a ServiceError says where it comes from."""
_WRAPPED: Final = re.compile(r"^[\w.]+: ")
"""What Python puts before the text of an exception in the last line of its traceback."""


class CpstreamError(Exception):
    """Base of everything that cpstream raises on purpose."""


class TransportError(CpstreamError):
    """Bytes did not arrive, or not as they were sent. The client has already retried as often as it may."""


class CorruptedError(TransportError):
    """Bytes arrived damaged, or are not what the contract says: a wrong checksum, row count or frame."""


class ForeignReplyError(CorruptedError):
    """Something else than a cpstream service answered with success, or a service of another form; asking again cannot help."""


class ContractMismatch(ForeignReplyError):
    """Client and service are of releases that do not understand each other; the text says which client to install."""


class UnreachableError(TransportError):
    """No way leads to the service as things are set; the text says what to set."""


class ServiceError(CpstreamError):
    """The service answered with a problem. code: the wire's error code; status: HTTP; retry_after_s: seconds or None.

    Made of its text alone, from which it reads its attributes: a DataLoader raises what failed in its worker process by calling the
    exception's type with the text of the traceback.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        origin = None
        for origin in _ORIGIN.finditer(text):  # noqa: B007 - the last one is that of the error itself, not of its causes
            pass
        before = text[: origin.start()] if origin else text
        self.detail = _WRAPPED.sub("", before.rpartition("\n")[2]) if "\n" in before else before
        self.status = int(origin["status"]) if origin else 0
        self.code = origin["code"] if origin else "unknown"
        self.url = origin["url"] if origin else ""
        self.request_id = origin["request_id"] if origin else "unknown"
        self._fingerprints = (origin["expected"] or "", origin["actual"] or "") if origin else ("", "")
        self.retry_after_s: float | None = None


class UnavailableError(ServiceError):
    """The service cannot answer now; the same request may succeed later."""


class UnauthorizedError(ServiceError):
    """The token is missing or wrong, or lacks the scope that this needs."""


class NotFoundError(ServiceError):
    """No such split or path."""


class InvalidRequestError(ServiceError):
    """The request itself is wrong; asking again cannot help."""


class DatasetChanged(ServiceError):
    """The service holds other data than the one pinned. expected, actual: fingerprints."""

    @property
    def expected(self) -> str:
        return self._fingerprints[0]

    @property
    def actual(self) -> str:
        return self._fingerprints[1]


class ForgottenError(ServiceError):
    """The data pinned holds a recording that the service's operator had forgotten, and is served no more.

    What this client kept of it is deleted by then. Go on with the current data: load_state_dict(state, accept_version=True).
    """


class StateMismatch(CpstreamError):
    """A state_dict belongs to other data, another split, seed or shuffle."""


class UnmatchedError(CpstreamError):
    """A frame does not fit a split. missing: paths of samples without a row; unknown: what rows without a sample name."""

    def __init__(self, text: str, missing: tuple[object, ...] = (), unknown: tuple[object, ...] = ()) -> None:
        super().__init__(text)
        self.missing, self.unknown = missing, unknown


_BY_CODE: dict[str, type[ServiceError]] = {
    ErrorCode.NOT_CONFIGURED.code: InvalidRequestError,
    ErrorCode.UNKNOWN_SPLIT.code: NotFoundError,
    ErrorCode.NOT_FOUND.code: NotFoundError,
    ErrorCode.METHOD_NOT_ALLOWED.code: InvalidRequestError,
    ErrorCode.INVALID_PARAMETER.code: InvalidRequestError,
    ErrorCode.INDEX_OUT_OF_RANGE.code: InvalidRequestError,
    ErrorCode.RANGE_NOT_SATISFIABLE.code: InvalidRequestError,
    ErrorCode.NOT_ACCEPTABLE.code: InvalidRequestError,
    ErrorCode.PAYLOAD_TOO_LARGE.code: InvalidRequestError,
    ErrorCode.STATE_FULL.code: InvalidRequestError,
    ErrorCode.DATASET_CHANGED.code: DatasetChanged,
    ErrorCode.FORGOTTEN.code: ForgottenError,
    ErrorCode.UNAUTHORIZED.code: UnauthorizedError,
    ErrorCode.FORBIDDEN.code: UnauthorizedError,
    ErrorCode.BODY_TIMEOUT.code: UnavailableError,
    ErrorCode.TOO_MANY_STREAMS.code: UnavailableError,
    ErrorCode.TOO_MANY_BYTES.code: UnavailableError,
    ErrorCode.OVERLOADED.code: UnavailableError,
    ErrorCode.STORAGE_FAILED.code: UnavailableError,
    ErrorCode.STATISTICS_FAILED.code: UnavailableError,
    ErrorCode.NOT_READY.code: UnavailableError,
    ErrorCode.RELOADING.code: UnavailableError,
    ErrorCode.DRAINING.code: UnavailableError,
    ErrorCode.INTERNAL.code: UnavailableError,
}


_MOST_DETAIL = 1500


def _one_line(detail: str) -> str:
    """What a service says, whichever it is: for a person, on one line."""
    shown = "".join(c if c.isprintable() else " " for c in detail)
    return shown if len(shown) <= _MOST_DETAIL else shown[: _MOST_DETAIL - 3] + "..."


def error_of(problem: Problem, url: str, retry_after_s: float | None = None) -> ServiceError:
    """The exception of a problem, chosen by its code; by its status where a newer service or a gateway has codes of its own."""
    by_status = UnavailableError if problem.status >= 500 or problem.status in (408, 425, 429) else ServiceError
    kind = _BY_CODE.get(problem.code, by_status)
    origin = f"{problem.status} {problem.code}; {url}; request {problem.request_id or 'unknown'}"
    if kind is DatasetChanged:
        origin += f"; expected {problem.extra.get('expected') or '?'}, actual {problem.extra.get('actual') or '?'}"
    error = kind(f"{_one_line(problem.detail)} [{origin}]")
    error.retry_after_s = retry_after_s
    return error


def read_body(kind: type[B], body: bytes, url: str) -> B:
    """The JSON of a reply from `url` that arrived whole, as the body that it should be.

    Raises ForeignReplyError, a CorruptedError, which names the member at fault.
    """
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise ForeignReplyError(f"{url}: {_misfit(kind, error)}") from error


def _misfit(kind: type[BaseModel], error: ValidationError) -> str:
    first, *others = error.errors(include_url=False)
    if first["type"] == "json_invalid":
        return f"not JSON: {first['ctx']['error']}"
    member = ".".join(map(str, first["loc"]))
    came = repr(first["input"])
    came = came if len(came) <= 80 else came[:77] + "..."
    if not member:
        what = f"it is {came}"
    elif first["type"] == "missing":
        what = f"{member} is missing"
    else:
        what = f"{member} is {came}: {first['msg'][0].lower()}{first['msg'][1:]}"
    more = f", and {len(others)} more like it" if others else ""
    return f"the reply is no {kind.__name__} as this client knows it: {what}{more}; is the client as new as the service?"
