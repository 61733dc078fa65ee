"""The bearer token, as both sides take it: as text, or as the file that holds it and nothing else."""

from pathlib import Path

MAX_FILE_BYTES = 16 * 1024
"""More is no token but a wrong path; no server takes longer headers either."""


def clean_token(text: str) -> str:
    """The token without blanks at its ends, as files and shells leave them. Raises ValueError where no HTTP header can carry it.

    The messages do not show the token, and fit after its name: "token " + message.
    """
    token = text.strip()
    if not token:
        raise ValueError("is empty")
    if not token.isprintable():
        raise ValueError("has a line break or another character that no HTTP header can carry")
    return token


def read_token(path: str | Path) -> str:
    """The token that a file holds, as Docker and Kubernetes mount secrets. Raises ValueError, to be put after its name."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"is {str(path)!r}: {error.strerror}; it must be a file that holds the token") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(
            f"is {str(path)!r}, which is longer than {MAX_FILE_BYTES} bytes; it must be a file that holds the token alone"
        )
    try:
        return clean_token(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"is {str(path)!r}, which is not UTF-8 text; it must be a file that holds the token alone") from None
    except ValueError as error:
        raise ValueError(f"is {str(path)!r}, and what it holds {error}; it must hold the token alone") from None
