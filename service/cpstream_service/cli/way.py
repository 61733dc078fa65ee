"""The way to a running service, as options of every command that asks one: `way: Way = None`, then `client_of(url, way)`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cpstream_client import Client, Retry
from cpstream_client.contract.token import read_token

from ..setting_errors import ENV_PREFIX, SettingsError


@dataclass(frozen=True, kw_only=True)
class WayOptions:
    """How the service is spoken to."""

    token: str | None = None
    """Bearer token, where the service has one."""
    token_file: Path | None = None
    """File that holds the token and nothing else."""
    ca_bundle: Path | None = None
    """CA certificates (PEM) that the service's is checked by; those of the system when not given."""
    client_cert: Path | None = None
    """Client certificate (PEM), where the service wants one, and its key unless that has a file of its own."""
    client_key: Path | None = None
    """Key of the client certificate."""


Way = Annotated[WayOptions | None, Parameter(name="*", group="The way to the service")]


def client_of(url: str, way: WayOptions | None) -> Client:
    """A client that says at once when it gets no answer: here, a person is waiting. Raises SettingsError."""
    way = way or WayOptions()
    token = way.token
    if token is None and way.token_file is not None:
        try:
            token = read_token(way.token_file)
        except ValueError as error:
            raise SettingsError(f"token_file {error} (--token-file, {ENV_PREFIX}TOKEN_FILE)") from None
    if way.client_key is not None and way.client_cert is None:
        raise SettingsError(f"client_key is {str(way.client_key)!r}, and there is no certificate; give it, too (--client-cert)")
    cert = None if way.client_cert is None else str(way.client_cert)
    try:
        return Client(
            url,
            token=token,
            verify=True if way.ca_bundle is None else way.ca_bundle,
            cert=cert if cert is None or way.client_key is None else (cert, str(way.client_key)),
            retry=Retry(timeout_s=0, contact_timeout_s=0),
        )
    except ValueError as error:  # of the url, the token or a file
        raise SettingsError(str(error)) from None
