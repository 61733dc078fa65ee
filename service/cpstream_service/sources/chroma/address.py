"""Which Chroma server the settings name, if any, and what it is to be told. Loads nothing heavy."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ...errors import DataError
from ...settings import ChromaSettings, DataSettings

_HEADERS_OF_TOKEN = ("Authorization", "X-Chroma-Token")
"""Where servers look for a token: those behind a proxy in the first, as Bearer; Chroma Cloud in the second."""


@dataclass(frozen=True)
class Server:
    """A Chroma server. url: with any prefix, without a slash at its end; by_host: it was set by host and port."""

    url: str
    by_host: bool = False
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    ca_file: Path | None = None


def address(settings: DataSettings) -> str:
    """Where the database is, for messages."""
    return server_url(settings) or str(settings.source_path)


def server_url(settings: ChromaSettings) -> str | None:
    """URL of the server, None where a folder is named. Raises DataError when it is not one."""
    if settings.chroma_url is None:
        return _of_host(settings.chroma_host, settings.chroma_port) if settings.chroma_host else None
    if settings.chroma_host:
        raise DataError("both --chroma-url and --chroma-host are set: leave one of them out")
    url = settings.chroma_url.rstrip("/")
    remedy = "set --chroma-url (CPSTREAM_CHROMA_URL) to one like https://chroma.example.org:8000/prefix"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise DataError(f"the Chroma URL {url!r} is not valid ({error}); {remedy}") from None
    if "@" in parts.netloc:  # it would be seen in process lists, logs and metadata
        raise DataError("the Chroma URL holds a user or password; put them into a file instead: --chroma-headers-file")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise DataError(f"the Chroma URL {url!r} is not of http or https with a host and no query; {remedy}")
    return url.removesuffix("/api/v2").rstrip("/")


def server_of(settings: ChromaSettings) -> Server | None:
    """The server with the headers from its files. Raises DataError when a file cannot be read."""
    url = server_url(settings)
    if url is None:
        return None
    headers = _headers(settings.chroma_headers_file) if settings.chroma_headers_file else {}
    if settings.chroma_token_file:
        token = _read(settings.chroma_token_file, "--chroma-token-file").strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            fault = "it is empty" if not token else "it holds no token, which is ASCII without blanks"
            raise DataError(f"{settings.chroma_token_file}: {fault}; write the token into it, or leave --chroma-token-file out")
        headers = dict(zip(_HEADERS_OF_TOKEN, (f"Bearer {token}", token), strict=True)) | headers
    if settings.chroma_ca_file and not settings.chroma_ca_file.is_file():
        raise DataError(f"{settings.chroma_ca_file}: there is no such file; set --chroma-ca-file to a PEM file of certificates")
    return Server(url, settings.chroma_url is None, headers, settings.chroma_ca_file)


def _of_host(host: str, port: int) -> str:
    if "/" in host:
        raise DataError(f"--chroma-host is {host!r}; it is to be a name or an address: set --chroma-url to a URL instead")
    return f"http://[{host.strip('[]')}]:{port}" if ":" in host else f"http://{host}:{port}"


def _headers(path: Path) -> dict[str, str]:
    headers = {}
    for i, line in enumerate(_read(path, "--chroma-headers-file").splitlines(), 1):
        name, colon, value = line.partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        if not colon or not name.replace("-", "").isalnum() or not line.isascii() or not value.strip().isprintable():
            raise DataError(f"{path}, line {i}: it is not a header; write one a line: Name: value")
        headers[name] = value.strip()
    return headers


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot read it: {error.strerror or error}; set {option} to a readable file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: it is not text; set {option} to a text file") from None
