"""One keep-alive HTTP connection to one endpoint, by http.client: its readinto costs a fifth of the CPU of httpx's iter_raw.

The connection knows requests and replies, errors included; what the bytes of a batch mean is decided elsewhere.
"""

import contextlib
import http.client
import os
import socket
import time
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlencode

from ..contract.bodies import Problem
from ..contract.wire import DIGEST_HEADER, LOCATION_HEADER, PROBLEM_JSON, REQUEST_ID_HEADER, content_digest
from ..errors import B, CorruptedError, CpstreamError, TransportError, error_of, read_body
from .endpoints import Endpoint
from .sockets import Response, set_timeout

_CONNECT_TIMEOUT_S = 5.0
"""Long enough for two lost SYNs, and short enough to ask another replica when a machine is gone."""
_MAX_IDLE_S = 3.0
"""A connection that was idle for longer is opened anew: servers close idle ones (uvicorn after 5 s by default)."""
_MAX_PROBLEM_BYTES = 1024**2


class Connection:
    """A connection that is opened by the first request and again by the next one after it broke. Not for several threads."""

    def __init__(self, endpoint: Endpoint, token: str | None, timeout_s: float) -> None:
        self.endpoint = endpoint
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s
        kind = http.client.HTTPSConnection if endpoint.secure else http.client.HTTPConnection
        self._http = kind(endpoint.host, endpoint.port, timeout=min(timeout_s, _CONNECT_TIMEOUT_S))
        self._http.response_class = Response
        # http.client forgets both at the head of a reply with "Connection: close", while the body is still to come.
        self._sock: socket.socket | None = None
        self._response: Response | None = None
        self._target = ""
        self._used_s = 0.0

    def send(
        self, method: str, path: str, params: Mapping[str, str], accept: str, body: bytes | None = None, content_type: str = ""
    ) -> None:
        """Send a request; `receive` gets the reply. Raises TransportError."""
        target = self.endpoint.prefix + path
        self._target = f"{target}?{urlencode(params)}" if params else target
        headers = {**self._headers, "Accept": accept, REQUEST_ID_HEADER: os.urandom(8).hex()}
        if content_type:
            headers["Content-Type"] = content_type
        if time.monotonic() - self._used_s > _MAX_IDLE_S:
            self.close()
        try:
            self._connect()
            self._http.request(method, self._target, body, headers)
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # UnicodeError: a host name that IDNA refuses
            raise self._failed(error) from error

    def receive(self, media_type: str) -> Response:
        """The reply to the last request: status 200 and the media type asked for.

        Raises ServiceError when the service answered with a problem, TransportError when no proper answer came.
        """
        try:
            response = self._response = cast(Response, self._http.getresponse())
            if response.status != 200:
                error = self._refused(response, response.read(_MAX_PROBLEM_BYTES))
                self.close()  # what a damaged reply has left in the socket is no answer to the next request
                raise error
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from error
        if response.headers.get_content_type() != media_type:
            self.close()
            raise CorruptedError(f"{self.url}: the reply is {response.headers.get_content_type()}, not {media_type}")
        return response

    def read_json(self, response: http.client.HTTPResponse, kind: type[B]) -> B:
        """The body of a JSON reply. Raises CorruptedError when it is not whole, or answers something else than was asked."""
        try:
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from error
        self._verify(response, body)
        location = response.headers.get(LOCATION_HEADER, "")
        if not (location and self._target.endswith(location)):
            raise CorruptedError(f"{self.url}: the reply is to another request, for {location!r}")
        return read_body(kind, body, self.url)

    @property
    def url(self) -> str:
        """URL of the last request."""
        return self.endpoint.url.removesuffix(self.endpoint.prefix) + self._target

    def release(self) -> None:
        """Note the time at which a reply was read to its end, from which on the connection is idle."""
        self._used_s = time.monotonic()

    def close(self) -> None:
        self._http.close()
        if self._response is not None:
            self._response.close()
        self._response = self._sock = None

    def abort(self) -> None:
        """Wake a thread that waits for bytes of this connection; it gets a TransportError. For other threads."""
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):  # the peer was faster
                sock.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> None:
        if self._http.sock is None:
            self._http.connect()
            self._sock = cast(socket.socket, self._http.sock)
            set_timeout(self._sock, self._timeout_s)

    def _failed(self, error: Exception) -> TransportError:
        self.close()
        what = "timed out" if isinstance(error, BlockingIOError) else str(error) or type(error).__name__
        return TransportError(f"{self.url}: {what}")

    def _verify(self, response: http.client.HTTPResponse, body: bytes) -> None:
        """Check the digest of a JSON reply. Raises CorruptedError."""
        digest = response.headers.get(DIGEST_HEADER)
        if digest != content_digest(body):
            what = "arrived damaged" if digest else f"has no {DIGEST_HEADER}; is this a cpstream service?"
            raise CorruptedError(f"{self.url}: the reply (status {response.status}) {what}")

    def _refused(self, response: http.client.HTTPResponse, body: bytes) -> CpstreamError:
        """What a status other than 200 means. A problem is believed only if it is whole and answers what was asked."""
        status, retry_after_s = response.status, _seconds(response.headers.get("Retry-After"))
        if response.headers.get_content_type() == PROBLEM_JSON:
            try:
                self._verify(response, body)
                problem = read_body(Problem, body, self.url)
            except CorruptedError as error:
                return error
            if problem.status != status or not (problem.instance and self._target.endswith(problem.instance)):
                return CorruptedError(f"{self.url}: the service answered another request: {problem.instance!r}, {problem.detail}")
            return error_of(problem, self.url, retry_after_s)
        detail = f"answered {status} {response.reason} without a problem body; is this a cpstream service?"
        if status in (401, 403, 404, 407, 429, 502, 503, 504):  # a proxy whose service is away, or another service altogether
            problem = Problem(
                type="about:blank",
                title=response.reason,
                status=status,
                detail=detail,
                instance=self._target,
                code="gateway",
                request_id="",
            )
            return error_of(problem, self.url, retry_after_s)
        return CorruptedError(f"{self.url}: {detail}")


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is not worth waiting for exactly."""
    try:
        return min(max(0.0, float(retry_after or "")), 3600.0)
    except ValueError:
        return None
