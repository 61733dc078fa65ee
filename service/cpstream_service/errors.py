"""What can be wrong with the data or the settings, as exceptions.

    DataError                   bad input data or settings; the command line prints it as one line and exits non-zero
    ├── AlignmentError          a split without aligned samples, or strict with something dropped; .reports say what and why
    ├── MissingFileError        a file or folder is not there; a FileNotFoundError as well, for code that catches that
    └── SourceUnavailableError  the source cannot be reached now; the last good snapshot may serve instead

Each message names the file, the row or key, and the remedy.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cpstream_client.contract.bodies import AlignmentReport
from cpstream_client.contract.wire import ErrorCode


class DataError(Exception):
    """Bad input data or settings. The message names the file, the row or key, and the remedy."""


class AlignmentError(DataError):
    """The alignment is not good enough to serve. reports: one for each split."""

    def __init__(self, message: str, reports: tuple[AlignmentReport, ...] = ()) -> None:
        super().__init__(message)
        self.reports = reports

    def __reduce__(self) -> tuple[type["AlignmentError"], tuple[str, tuple[AlignmentReport, ...]]]:
        return type(self), (str(self), self.reports)


class MissingFileError(DataError, FileNotFoundError):
    """A file or folder that the settings name is not there."""


class SourceUnavailableError(DataError):
    """The source cannot be reached now."""


class RequestError(Exception):
    """A request that cannot be answered. extra: further members of the problem; headers: further headers of the reply."""

    code: ClassVar[ErrorCode]

    def __init__(self, detail: str, *, extra: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail, self.extra, self.headers = detail, dict(extra or {}), dict(headers or {})


class UnknownSplit(RequestError):
    """The split in the path is not served."""

    code = ErrorCode.UNKNOWN_SPLIT

    def __init__(self, split: str, served: Sequence[str]) -> None:
        super().__init__(f"split {shown(split)} is not served; splits: {', '.join(served)}")


class NotFound(RequestError):
    """Nothing is served under this path."""

    code = ErrorCode.NOT_FOUND


class MethodNotAllowed(RequestError):
    """The path exists, but not for this method."""

    code = ErrorCode.METHOD_NOT_ALLOWED


class InvalidParameter(RequestError):
    """A parameter or the body is malformed or out of range."""

    code = ErrorCode.INVALID_PARAMETER


class IndexOutOfRange(RequestError):
    """A sample index, offset or step outside the split."""

    code = ErrorCode.INDEX_OUT_OF_RANGE


class RangeNotSatisfiable(RequestError):
    """The Range header asks for bytes beyond the end."""

    code = ErrorCode.RANGE_NOT_SATISFIABLE


class DatasetChanged(RequestError):
    """The fingerprint pinned by the request is not the one served. actual: of the current version; held: of all that there are."""

    code = ErrorCode.DATASET_CHANGED

    def __init__(self, split: str, expected: str, actual: str, held: Sequence[str] = ()) -> None:
        super().__init__(
            f"split {split!r} has fingerprint {actual}, not {expected} as pinned by the request: the data was replaced; "
            "start again with the new fingerprint, or have the old data served",
            extra={"expected": expected, "actual": actual, "held": list(held) or [actual]},
        )


class Forgotten(RequestError):
    """The data pinned by the request holds a recording that is to be forgotten."""

    code = ErrorCode.FORGOTTEN

    def __init__(self, split: str, fingerprint: str) -> None:
        super().__init__(
            f"split {shown(split)} with fingerprint {fingerprint} holds a recording that is to be forgotten, and is not served; "
            "go on with the current data from the next epoch on: load_state_dict(state, accept_version=True) in cpstream's client",
            extra={"fingerprint": fingerprint},
        )


class Unauthorized(RequestError):
    """No bearer token, or a wrong one."""

    code = ErrorCode.UNAUTHORIZED

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(RequestError):
    """Whoever asks may not do this."""

    code = ErrorCode.FORBIDDEN


class NotAcceptable(RequestError):
    """The Accept header excludes every representation that there is."""

    code = ErrorCode.NOT_ACCEPTABLE


class BodyTimeout(RequestError):
    """The request's body does not go on arriving."""

    code = ErrorCode.BODY_TIMEOUT


class PayloadTooLarge(RequestError):
    """The request's body or its reply exceeds a limit."""

    code = ErrorCode.PAYLOAD_TOO_LARGE


class Overloaded(RequestError):
    """Too many batch streams are open, or too many bytes of bodies held."""

    code = ErrorCode.OVERLOADED


class TooManyStreams(RequestError):
    """One client has as many batch streams open as it may."""

    code = ErrorCode.TOO_MANY_STREAMS


class TooManyBytes(RequestError):
    """A token is being sent as many bytes a second as it may."""

    code = ErrorCode.TOO_MANY_BYTES


class StorageFailed(RequestError):
    """What the reply is made from cannot be written to the service's disk. The log says why, the reply does not."""

    code = ErrorCode.STORAGE_FAILED


class StatisticsFailed(RequestError):
    """The figures cannot be computed. The log says why, the reply does not."""

    code = ErrorCode.STATISTICS_FAILED


class StateFull(RequestError):
    """As much is kept as may be."""

    code = ErrorCode.STATE_FULL


class NotReady(RequestError):
    """There is no data to serve yet."""

    code = ErrorCode.NOT_READY


class Reloading(RequestError):
    """The current data holds a recording that is to be forgotten; the data without it is not there yet."""

    code = ErrorCode.RELOADING


class NotConfigured(RequestError):
    """The service could answer, were it started with more than it was."""

    code = ErrorCode.NOT_CONFIGURED


class Draining(RequestError):
    """The service is shutting down."""

    code = ErrorCode.DRAINING


def shown(value: object) -> str:
    """A value of the client's for a detail, not too much of it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
