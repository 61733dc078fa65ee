"""A reply, checked before anybody believes it: status, media type, digest, and that it answers what was asked."""

from ..contract.bodies import Problem
from ..contract.wire import CONTRACT_HEADER, DIGEST_HEADER, LOCATION_HEADER, PROBLEM_JSON, REQUEST_ID_HEADER, content_digest, misfit
from ..errors import B, ContractMismatch, CorruptedError, CpstreamError, ForeignReplyError, TransportError, error_of, read_body
from .answers import Answer
from .failures import failure

_MAX_PROBLEM_BYTES = 1024**2
_GATEWAY_AWAY = (408, 425, 429, 502, 503, 504)
"""A proxy whose service is away or busy: these pass, whatever their body is."""
_DAMAGED_REQUEST = b"Invalid HTTP request received."
"""What uvicorn answers, with status 400, to what is no HTTP: a request of ours that was damaged on its way."""
_REMEDIES = {
    400: "set https in the url, or cert=, whichever it may want",
    401: "set token= or auth=",
    403: "set token=, auth= or cert=",
    404: "check the path of the url",
    407: "set proxy='http://user:password@host:port'",
    413: "the limit of request bodies of the proxy in between is too low (in nginx, client_max_body_size)",
    414: "the limit of URLs of the proxy in between is too low",
}


class Reply:
    """A reply whose body is still to come. base: of the service; url: of the request, with its query; length: bytes of the
    body, None where unknown.

    Whoever gets one closes it. Read to its end, its connection is used again.
    """

    def __init__(
        self, answer: Answer, base: str, url: str, target: str, request_id: str, errors: tuple[type[Exception], ...]
    ) -> None:
        self.url, self.length = url, answer.length
        self._base = base
        self._answer, self._target, self._request_id, self._errors = answer, target, request_id, errors

    def fill(self, buffer: memoryview) -> None:
        """Read as many bytes of the body as the buffer holds. Raises TransportError, also where there are not so many."""
        if self._readinto(buffer) != len(buffer):
            raise TransportError(f"{self.url}: the connection ended before the reply did")

    def finish(self) -> None:
        """Find the end of the body, where it must be. Raises CorruptedError where the body goes on."""
        if self._readinto(memoryview(bytearray(1))):
            raise CorruptedError(f"{self.url}: the stream goes on behind its last batch")

    def close(self) -> None:
        self._answer.close()

    def __enter__(self) -> "Reply":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def discard(self) -> None:
        """Close it after a failure: its connection is not used again."""
        self._answer.discard()

    def read_json(self, kind: type[B]) -> B:
        """The body of a JSON reply. Raises CorruptedError when it is not whole, or answers something else than was asked."""
        body = self.read()
        self._verify(body)
        location = self._answer.headers.get(LOCATION_HEADER, "")
        if not (location and self._target.endswith(location)):
            raise CorruptedError(f"{self.url}: the reply is to another request, for {_brief(location)}")
        return read_body(kind, body, self.url)

    def check(self, media_type: str) -> None:
        """Find status 200 and the media type asked for, uncompressed.

        Raises ContractMismatch when the service is of another form; ServiceError when it, or a proxy before it, refused;
        ForeignReplyError when something else answered; CorruptedError or UnavailableError when asking again may help.
        """
        status, got = self._answer.status, self._media_type
        encoding = _word(self._answer.headers.get("Content-Encoding", "identity"))
        answered = status == 200 and got == media_type
        mismatch = misfit(self._answer.headers.get(CONTRACT_HEADER, ""), self._base) if self._is_the_services else None
        if answered and encoding == "identity" and mismatch is None:
            return
        try:
            if mismatch is not None:
                raise ContractMismatch(mismatch)
            if answered:
                raise ForeignReplyError(
                    f"{self.url}: the reply is compressed ({encoding}), unasked; have the proxy in between not do so"
                )
            raise self._refusal(status, got, media_type)
        finally:
            self.discard()

    @property
    def _media_type(self) -> str:
        return _word(self._answer.headers.get("Content-Type", "").partition(";")[0].lower()) or "without a type"

    @property
    def _is_the_services(self) -> bool:
        """Whether it is the service itself that answered: it says the request's id, which a login page does not."""
        return self._answer.headers.get(REQUEST_ID_HEADER) == self._request_id

    def _readinto(self, buffer: memoryview) -> int:
        try:
            return self._answer.readinto(buffer)
        except self._errors as error:
            raise failure(error, self.url) from error

    def read(self, most: int | None = None) -> bytes:
        """The whole body, or its first bytes. Raises TransportError where it ends too early."""
        parts = bytearray()
        piece = memoryview(bytearray(64 * 1024))
        while most is None or len(parts) < most:
            got = self._readinto(piece)
            if not got:
                break
            parts += piece[:got]
        if self.length is not None and len(parts) < self.length and (most is None or len(parts) < most):
            raise TransportError(f"{self.url}: the connection ended before the reply did")
        return bytes(parts)

    def _verify(self, body: bytes) -> None:
        """Check the digest of a JSON reply. Raises CorruptedError."""
        digest = self._answer.headers.get(DIGEST_HEADER)
        if digest is None and not self._is_the_services:
            raise ForeignReplyError(f"{self._said()} has no {DIGEST_HEADER}; is this a cpstream service?")
        if digest != content_digest(body):
            what = "arrived damaged" if digest else f"has no {DIGEST_HEADER}; is this a cpstream service?"
            raise CorruptedError(f"{self._said()} {what}")

    def _said(self) -> str:
        return f"{self.url}: the reply (status {self._answer.status})"

    def _refusal(self, status: int, got: str, wanted: str) -> CpstreamError:
        """What another status or type means. A problem is believed only if it is whole and answers what was asked."""
        body = self.read(_MAX_PROBLEM_BYTES)
        reason = _word(self._answer.reason)
        retry_after_s = _seconds(self._answer.headers.get("Retry-After"))
        if got == PROBLEM_JSON:
            error = self._problem(status, body, retry_after_s)
            if not isinstance(error, ForeignReplyError):
                return error
        detail = f"answered {status} {reason} without a problem body; is this a cpstream service?"
        if status in _GATEWAY_AWAY:
            return self._gateways(detail, retry_after_s)
        is_damaged = status >= 500 or status < 200 or (status == 400 and body == _DAMAGED_REQUEST)
        if status == 200 and "Content-Type" not in self._answer.headers:
            is_damaged = True  # whatever else answers, such as a login page, says what it is
        if self._is_the_services or is_damaged:
            if status == 200:
                return CorruptedError(f"{self.url}: the reply is {got}, not {wanted}")
            return CorruptedError(f"{self.url}: {detail}")
        if status < 300:
            return ForeignReplyError(f"{self.url}: answered {status} with {got}, not {wanted}; is this a cpstream service?")
        if status < 400:
            detail = f"answered {status} {reason}, {self._elsewhere()}"
        elif status in _REMEDIES:
            detail += f" If it is, {_REMEDIES[status]}"
        return self._gateways(detail, retry_after_s)

    def _gateways(self, detail: str, retry_after_s: float | None) -> CpstreamError:
        problem = Problem(
            type="about:blank",
            title=self._answer.reason,
            status=self._answer.status,
            detail=detail,
            instance=self._target,
            code="gateway",
            request_id="",
        )
        return error_of(problem, self.url, retry_after_s)

    def _problem(self, status: int, body: bytes, retry_after_s: float | None) -> CpstreamError:
        try:
            self._verify(body)
            problem = read_body(Problem, body, self.url)
        except ForeignReplyError as error:
            return error
        except CorruptedError as error:  # not final, whatever the status is
            return CorruptedError(str(error))
        if problem.status != status or not (problem.instance and self._target.endswith(problem.instance)):
            return CorruptedError(
                f"{self.url}: the service answered another request: {_brief(problem.instance)}, {_brief(problem.detail)}"
            )
        return error_of(problem, self.url, retry_after_s)

    def _elsewhere(self) -> str:
        """Where a redirect leads, and what to set."""
        location = self._answer.headers.get("Location", "").partition("?")[0]  # behind it there may be secrets
        shown = "".join(c if c.isprintable() else "?" for c in location)[:200]
        path = self._target.partition("?")[0]
        if location.startswith(("http://", "https://")) and location.endswith(path):
            return f"to {shown}; set url={shown.removesuffix(path)!r}"
        return f"to {shown or 'nowhere'}; if that is a login, set token=, auth= or headers= so that it lets requests through"


def _word(text: str) -> str:
    """What a header or a status line says, for a message: on one line, whatever was sent."""
    return "".join(c if c.isprintable() else "?" for c in text.strip()[:100])


def _brief(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:197] + "...")


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is not worth waiting for exactly."""
    try:
        return min(max(0.0, float(retry_after or "")), 3600.0)
    except ValueError:
        return None
