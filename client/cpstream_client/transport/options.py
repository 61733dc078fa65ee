"""How HTTP is spoken to a service: what httpx.Client takes under the same names, checked before anything is sent."""

import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Union

from ..contract.token import clean_token, read_token
from .retry import Retry

if TYPE_CHECKING:  # at run time it is imported by the first request, which an import of this package need not wait for
    import httpx

Verify = Union[ssl.SSLContext, str, "os.PathLike[str]", bool]
Cert = Union[str, "os.PathLike[str]", tuple[str, str], tuple[str, str, str]]
Headers = Mapping[str, str] | Sequence[tuple[str, str]]
Auth = Union[tuple[str, str], Callable[["httpx.Request"], "httpx.Request"], "httpx.Auth"]
Proxy = Union[str, "httpx.Proxy"]
Timeout = Union[float, "httpx.Timeout"]
Hooks = Mapping[str, Sequence[Callable[..., Any]]]
MakeHttp = Union["httpx.Client", Callable[[], "httpx.Client"]]

TIMEOUT_S = 30.0
_LOOK_EVERY_S = 1.0
CONNECT_TIMEOUT_S = 5.0
"""Long enough for two lost SYNs, and short enough to ask another replica when a machine is gone."""


class ClientOptions(TypedDict, total=False):
    """The keyword arguments of Client, which the datasets pass on to it."""

    token: str | None
    verify: Verify
    cert: Cert | None
    proxy: Proxy | None
    auth: Auth | None
    headers: Headers | None
    event_hooks: Hooks | None
    timeout: Timeout | None
    timeout_s: float | None
    http: MakeHttp | None
    retry: Retry | None
    max_connections: int


class TokenFile:
    """A token that its file may change while a training runs, as where secrets are mounted: looked at once a second, when asked."""

    def __init__(self, path: str) -> None:
        """Raises ValueError for one that cannot be read."""
        self.path = path
        self._stamp, self._token, self._looked_s = self._look(), _token_of_a_header(read_token(path)), time.monotonic()

    def __reduce__(self) -> tuple[type["TokenFile"], tuple[str]]:
        return type(self), (self.path,)

    def read(self) -> str:
        """The token that the file holds now; the last one that it held where that cannot be read."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = now_s
            with suppress(OSError, ValueError):  # it is being written
                stamp = self._look()
                if stamp != self._stamp:
                    self._token, self._stamp = _token_of_a_header(read_token(self.path)), stamp
        return self._token

    def _look(self) -> tuple[int, ...]:
        status = os.stat(self.path)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """See Client. timeout_s: seconds without a byte; connect_timeout_s: seconds until a connection is made."""

    token: str | TokenFile | None = field(default=None, repr=False)
    verify: Verify = True
    cert: Cert | None = None
    proxy: Proxy | None = field(default=None, repr=False)
    auth: Auth | None = field(default=None, repr=False)
    headers: Headers | None = field(default=None, repr=False)
    event_hooks: Hooks | None = None
    http: MakeHttp | None = None
    timeout_s: float = TIMEOUT_S
    connect_timeout_s: float = CONNECT_TIMEOUT_S

    def __post_init__(self) -> None:
        if not self.timeout_s > 0 or not self.connect_timeout_s > 0:
            wrong = self.timeout_s if not self.timeout_s > 0 else self.connect_timeout_s
            raise ValueError(f"timeout_s is {wrong}; it must be more than 0 seconds")
        if self.token and isinstance(self.token, str):
            object.__setattr__(self, "token", _token_of_a_header(self.token))
        if self.http is not None:
            given = [name for name in _OF_THE_CLIENT if getattr(self, name) != _DEFAULTS[name]]
            if given:
                raise ValueError(f"http and {', '.join(given)} are both given; give {given[0]} to the httpx.Client that http makes")
        if self.verify is not True or self.cert is not None:
            self.ssl_context()  # what is wrong with a file should be heard of here, not in the middle of a job

    def bearer(self) -> str | None:
        """The token of a request that is sent now."""
        return self.token.read() if isinstance(self.token, TokenFile) else self.token

    def ssl_context(self) -> ssl.SSLContext:
        """For https. Raises ValueError when a file cannot be read."""
        if isinstance(self.verify, ssl.SSLContext):
            context = self.verify
        else:
            context = ssl.create_default_context()
            if self.verify is False:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            elif self.verify is not True:
                context = _trusting(Path(self.verify))
        if self.cert is not None:
            parts = self.cert if isinstance(self.cert, tuple) else (self.cert,)
            try:
                context.load_cert_chain(*parts)
            except (OSError, ValueError, TypeError) as error:  # SSLError is an OSError
                names = ", ".join(map(repr, parts[:2]))  # the third is a password
                raise ValueError(
                    f"cert is {names}: {error}; give the path of a PEM file with certificate and key, or a path for each"
                ) from None
        return context

    def __reduce__(self) -> tuple[type["HttpOptions"], tuple[Any, ...]]:
        """On the way to another process. Raises TypeError, naming the remedy, for what belongs to this one."""
        if is_http_client(self.http):
            raise TypeError(f"http={self.http!r} cannot go to another process; {GIVE_A_FUNCTION}")
        if isinstance(self.verify, ssl.SSLContext):
            raise TypeError(
                "verify is an ssl.SSLContext, which cannot be pickled; give the path of the CA file, and cert= beside it"
            )
        return type(self), tuple(getattr(self, spec.name) for spec in fields(self))


GIVE_A_FUNCTION = (
    "give http= a function of a module that makes the httpx.Client; each process, as DataLoader workers are, then calls it once"
)
_DEFAULTS: dict[str, Any] = {"verify": True, "cert": None, "proxy": None, "auth": None, "headers": None, "event_hooks": None}
_OF_THE_CLIENT = tuple(_DEFAULTS)


def is_http_client(http: object) -> bool:
    """Whether it is an httpx.Client: by what it can do, for httpx's successor and Starlette's TestClient have other classes."""
    return not isinstance(http, type) and hasattr(http, "build_request") and hasattr(http, "send")


def _token_of_a_header(text: str) -> str:
    try:
        token = clean_token(text)
    except ValueError as error:
        raise ValueError(f"the token {error}") from None
    if not token.isascii():
        raise ValueError("the token has a letter that is not ASCII, which this client does not send")
    return token


def given_token() -> str | TokenFile | None:
    """The token of CPSTREAM_TOKEN, or of the file that CPSTREAM_TOKEN_FILE names. Raises ValueError for one that cannot be read."""
    token, path = os.environ.get("CPSTREAM_TOKEN"), os.environ.get("CPSTREAM_TOKEN_FILE")
    if token or not path:
        return token
    try:
        read_token(path)
    except ValueError as error:
        raise ValueError(f"CPSTREAM_TOKEN_FILE {error}") from None
    return TokenFile(path)


def given_verify(verify: Verify) -> Verify:
    """The same, or in place of True the CA certificates that CPSTREAM_CA_BUNDLE names: a file, or a folder as OpenSSL has them."""
    return os.environ.get("CPSTREAM_CA_BUNDLE") or True if verify is True else verify


def given_cert(cert: Cert | None) -> Cert | None:
    """The same, or in place of None the files of CPSTREAM_CLIENT_CERT and, where the key is not in it, CPSTREAM_CLIENT_KEY."""
    path, key = os.environ.get("CPSTREAM_CLIENT_CERT"), os.environ.get("CPSTREAM_CLIENT_KEY")
    if cert is not None or not path:
        return cert
    return (path, key) if key else path


def timeouts(timeout: Timeout | None, timeout_s: float | None, http: MakeHttp | None) -> tuple[float, float]:
    """Seconds to wait for a byte, and for a connection, of what a caller gave: a number, or httpx.Timeout's read and connect.

    Raises ValueError for what contradicts each other, or would wait for ever.
    """
    if http is not None and (timeout is not None or timeout_s is not None):
        raise ValueError("http and timeout are both given; give timeout to the httpx.Client that http makes")
    if timeout is not None and timeout_s is not None:
        raise ValueError(f"timeout is {timeout} and timeout_s is {timeout_s}; they mean the same, so give one")
    given: Any = timeout if timeout is not None else timeout_s if timeout_s is not None else TIMEOUT_S
    if not hasattr(given, "read"):
        return float(given), min(float(given), CONNECT_TIMEOUT_S) if given > 0 else CONNECT_TIMEOUT_S
    if given.read is None or given.connect is None:
        raise ValueError(
            f"timeout is {given!r}; read and connect must be seconds: without, a stalled connection would hang for ever"
        )
    return float(given.read), float(given.connect)


def _trusting(path: Path) -> ssl.SSLContext:
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # SSLError is one
        raise ValueError(f"verify is {str(path)!r}: {error}; give the path of a PEM file with the CA's certificate") from None
