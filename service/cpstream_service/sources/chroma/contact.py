"""First contact with a Chroma server: what chromadb is about to ask, asked before it, as it tells neither status nor address."""

import ssl
from collections.abc import Iterator
from http import HTTPStatus

import httpx

from ...errors import DataError, SourceUnavailableError
from ...settings import DataSettings
from .address import Server
from .failures import may_pass, text_of

_TIMEOUT_S = 10.0


def first_contact(server: Server, settings: DataSettings) -> None:
    """Return if the server lets these settings in. Raises SourceUnavailableError where that may change by itself, or DataError."""
    try:
        with httpx.Client(headers=server.headers, verify=_certificates(server), timeout=_TIMEOUT_S) as client:
            reply = client.get(f"{server.url}/api/v2/heartbeat")
            if reply.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                old = client.get(f"{server.url}/api/v1/heartbeat")
                if old.status_code == HTTPStatus.OK and "heartbeat" in old.text:
                    raise DataError(f"{server.url} is a Chroma server too old for the API v2; upgrade it to 1.0 or newer")
            _judge(server, reply)
            if "heartbeat" not in reply.text:
                raise DataError(f"{server.url} answers {reply.status_code}, but not as a Chroma server does; {_remedy(server)}")
            tenant = f"/tenants/{settings.chroma_tenant}"
            _judge(server, client.get(f"{server.url}/api/v2/auth/identity"))
            _judge(server, client.get(f"{server.url}/api/v2{tenant}"), f"tenant {settings.chroma_tenant!r}", "--chroma-tenant")
            _judge(
                server,
                client.get(f"{server.url}/api/v2{tenant}/databases/{settings.chroma_database}"),
                f"database {settings.chroma_database!r} of tenant {settings.chroma_tenant!r}",
                "--chroma-database",
            )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        for cause in _causes(error):
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise DataError(
                    f"{server.url}: its certificate is not trusted ({cause.verify_message}); "
                    "set --chroma-ca-file to the PEM file of the authority that signed it"
                ) from None
        raise SourceUnavailableError(f"no Chroma server answers at {server.url} ({text_of(error)}); {_remedy(server)}") from None


def _judge(server: Server, reply: httpx.Response, wanted: str = "", option: str = "") -> None:
    """Raise where a reply is not one of success. wanted: what the request asked for, and the option that names it."""
    status = reply.status_code
    if status == HTTPStatus.OK:
        return
    says = f"{server.url} answers {status} {reply.reason_phrase}".rstrip()
    if may_pass(status):
        raise SourceUnavailableError(f"{says} ({text_of(reply.text)}); start again when it is well")
    if reply.has_redirect_location:
        location = text_of(reply.headers["Location"])
        raise DataError(f"{says}, but not as a Chroma server does: it sends on to {location}; {_remedy(server)}")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        given = "the token or headers given are refused" if server.headers else "it wants a token or headers"
        of_these = f", or not for this {wanted}" if wanted else ""
        raise DataError(f"{says}: {given}{of_these}; set --chroma-token-file or --chroma-headers-file")
    if status == HTTPStatus.NOT_FOUND and wanted:
        raise DataError(f"{server.url}: there is no {wanted}; set {option}")
    raise DataError(f"{says}, but not as a Chroma server does ({text_of(reply.text or 'an empty reply')}); {_remedy(server)}")


def _remedy(server: Server) -> str:
    option = "--chroma-host and --chroma-port" if server.by_host else "--chroma-url"
    return f"start it (chroma run), or set {option}"


def _certificates(server: Server) -> ssl.SSLContext | bool:
    if server.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=server.ca_file)
    except ssl.SSLError:
        raise DataError(f"{server.ca_file}: it holds no certificate; set --chroma-ca-file to a PEM file of certificates") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
