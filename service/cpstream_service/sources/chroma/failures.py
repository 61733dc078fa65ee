"""What goes wrong with a Chroma client, in one line each.

What may pass (no connection, 429, 5xx) is a SourceUnavailableError, so that the last good snapshot serves; all else a DataError.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import httpx
from chromadb.errors import ChromaError

from ...errors import DataError, SourceUnavailableError
from ...settings import DataSettings
from .address import address, server_url

_SHOWN_CHARACTERS = 200


class Changed(Exception):
    """The collection changed while it was read: read it again."""


@contextmanager
def errors_named(settings: DataSettings) -> Iterator[None]:
    """For calls of chromadb, whatever they raise."""
    where, is_server = address(settings), server_url(settings) is not None
    try:
        yield
    except (DataError, Changed):
        raise
    except httpx.TransportError as error:
        raise SourceUnavailableError(f"{where}: the Chroma server stopped answering ({text_of(error)})") from None
    except Exception as error:  # chromadb has an error of another kind for each way in which an answer is not as it expects
        status = status_of(error)
        if is_server and status is not None and may_pass(status):
            raise SourceUnavailableError(f"{where}: Chroma answers: {text_of(error)}") from None
        damaged = "; the folder may be damaged: copy it again, whole, while nothing writes to it"
        raise DataError(f"{where}: Chroma answers: {text_of(error)}{damaged if status == 500 else ''}") from None


def status_of(error: Exception) -> int | None:
    """The status that a server answered, as chromadb tells it: by an error of its own, or a bare Exception of the body."""
    if isinstance(error, ChromaError):
        return error.code()
    cause = error.__context__
    return cause.response.status_code if isinstance(cause, httpx.HTTPStatusError) else None


def may_pass(status: int) -> bool:
    """Whether another try, later, may succeed."""
    return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def text_of(said: object) -> str:
    """What an error or a server says, in one printable line."""
    text = " ".join(str(said).split()) or type(said).__name__
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
