"""What went wrong on the way, as cpstream's errors: what may pass is retried, what cannot pass says what to set."""

import http.client
import socket
import ssl
from collections.abc import Iterator

from ..errors import TransportError, UnreachableError

_UNKNOWN_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


def failure(error: BaseException, url: str) -> TransportError:
    """An UnreachableError where only another setting can help, else a TransportError."""
    for cause in _chain(error):
        why = _final(cause, url)
        if why:
            return UnreachableError(f"{url}: {why}")
    return TransportError(f"{url}: {_one_line(str(error)) or type(error).__name__}")


def _final(error: BaseException, url: str) -> str:
    """Why it is of no use to try again, and the remedy; "" where it may be of use."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate is not trusted: {error.verify_message}; "
            "set verify= to the path of the certificate of the CA that issued it, and a url with the host that it is for"
        )
    if isinstance(error, ssl.SSLError):
        return _of_tls(str(error.reason or ""))
    if isinstance(error, UnicodeError) or (isinstance(error, socket.gaierror) and error.errno in _UNKNOWN_HOST):
        return f"the host does not resolve: {error}; is the url right?"
    kind, text = type(error).__name__, str(error)
    if kind == "ProxyError" and text[:1] == "4" and text[:3] not in ("408", "429"):
        return f"the proxy refused to connect: {text}; set proxy='http://user:password@host:port', as it wants it"
    if kind == "TooManyRedirects":
        return f"{text.rstrip('.')}; is the url right?"
    if isinstance(error, http.client.BadStatusLine) and text.startswith("\x15\x03"):  # the beginning of a TLS alert
        return "the other side speaks TLS; set url='https://...'"
    return ""


def _one_line(text: str) -> str:
    """What the other side sent may stand in it, whatever that was."""
    shown = "".join(c if c.isprintable() else "?" for c in text.strip())
    return shown if len(shown) <= 300 else shown[:297] + "..."


def _of_tls(reason: str) -> str:
    if "WRONG_VERSION_NUMBER" in reason or "RECORD_LAYER_FAILURE" in reason or "HTTP_REQUEST" in reason:
        return f"the other side does not speak TLS ({reason}); set url='http://...'"
    if "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason or "HANDSHAKE_FAILURE" in reason):
        return f"the other side wants a client certificate that it trusts ({reason}); set cert="
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__
