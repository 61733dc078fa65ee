"""One keep-alive HTTP connection to one endpoint, by http.client: its readinto costs a fifth of the CPU of httpx's iter_raw.

The connection knows requests and replies, errors included; what the bytes mean is decided elsewhere.
"""

import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from .errors import CorruptedError, ServiceError, TransportError, UnavailableError, error_of
from .wire import PROBLEM_JSON, REQUEST_ID_HEADER, Problem

_MAX_PROBLEM_BYTES = 1024**2
_MAX_IDLE_S = 3.0
"""A connection that was idle for longer is opened anew: servers close idle ones (uvicorn after 5 s by default)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service listens: scheme, host, port, and the path under which a proxy may have put it."""

    url: str
    secure: bool
    host: str
    port: int
    prefix: str

    @classmethod
    def parse(cls, url: str) -> "Endpoint":
        """Raises ValueError for what is not an http or https URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {url!r}; it must look like http://data:8000")
        secure = parts.scheme == "https"
        return cls(url.rstrip("/"), secure, parts.hostname, parts.port or (443 if secure else 80), parts.path.rstrip("/"))


class Connection:
    """A connection that is opened by the first request and again by the next one after it broke. Not for several threads."""

    def __init__(self, endpoint: Endpoint, token: str | None, timeout_s: float) -> None:
        self.endpoint = endpoint
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        kind = http.client.HTTPSConnection if endpoint.secure else http.client.HTTPConnection
        self._http = kind(endpoint.host, endpoint.port, timeout=timeout_s)
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
            self._http.close()
        try:
            self._http.request(method, self._target, body, headers)
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from error

    def receive(self, media_type: str) -> http.client.HTTPResponse:
        """The reply to the last request: status 200 and the media type asked for.

        Raises ServiceError when the service answered with a problem, TransportError when no proper answer came.
        """
        try:
            response = self._http.getresponse()
            if response.status != 200:
                raise self._refused(response, response.read(_MAX_PROBLEM_BYTES))
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from error
        if response.headers.get_content_type() != media_type:
            self.close()
            raise CorruptedError(f"{self.url}: the reply is {response.headers.get_content_type()}, not {media_type}")
        return response

    def read(self, response: http.client.HTTPResponse) -> bytes:
        """The whole body of a small reply. Raises TransportError when it breaks off."""
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from error

    @property
    def url(self) -> str:
        """URL of the last request."""
        return self.endpoint.url.removesuffix(self.endpoint.prefix) + self._target

    def release(self) -> None:
        """Note the time at which a reply was read to its end, from which on the connection is idle."""
        self._used_s = time.monotonic()

    def close(self) -> None:
        self._http.close()

    def abort(self) -> None:
        """Wake a thread that waits for bytes of this connection; it gets a TransportError. For other threads."""
        sock = self._http.sock
        if sock is not None:
            with contextlib.suppress(OSError):  # the peer was faster
                sock.shutdown(socket.SHUT_RDWR)

    def _failed(self, error: Exception) -> TransportError:
        self.close()
        return TransportError(f"{self.url}: {str(error) or type(error).__name__}")

    def _refused(self, response: http.client.HTTPResponse, body: bytes) -> ServiceError | TransportError:
        """What a status other than 200 means. A problem is believed only if it answers what was asked."""
        if response.will_close or not response.isclosed():
            self.close()
        status = response.status
        if response.headers.get_content_type() == PROBLEM_JSON:
            try:
                problem = Problem.from_json(json.loads(body))
            except (ValueError, KeyError, TypeError) as error:
                return CorruptedError(f"{self.url}: unreadable problem with status {status}: {error!r}")
            if problem.status != status or not self._target.endswith(problem.instance):
                return CorruptedError(f"{self.url}: the service answered another request: {problem.instance!r}, {problem.detail}")
            return error_of(problem, self.url, _seconds(response.headers.get("Retry-After")))
        detail = f"answered {status} {response.reason} without a problem body; is this a cpstream service?"
        if status in (429, 502, 503, 504):  # a proxy whose service is away
            problem = Problem("about:blank", response.reason, status, detail, self._target, "gateway", "")
            return UnavailableError(problem, self.url, _seconds(response.headers.get("Retry-After")))
        if status in (401, 403, 404, 407):  # a proxy, or another service altogether
            return ServiceError(Problem("about:blank", response.reason, status, detail, self._target, "gateway", ""), self.url)
        return CorruptedError(f"{self.url}: {detail}")


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is not worth waiting for exactly."""
    try:
        return min(max(0.0, float(retry_after or "")), 3600.0)
    except ValueError:
        return None
