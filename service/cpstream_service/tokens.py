"""Named tokens and what each may do: from a file of several, or from the settings' one, which may do everything.

    [trainers]                       the name, which logs and metrics show
    token = "..."                    or token = ["new", "old"] for the time of a change
    scopes = ["read"]                of read, write, metrics, admin; read when not given

    max_streams = 32                 of its streams at once, and bytes a second of its replies; as the service's own when not given
    max_bytes_per_s = 100_000_000

    [prometheus]
    sha256 = "..."                   instead of the token: its hash, which lets nobody in
    scopes = ["metrics"]

The file is TOML: people comment on it, and whatever fills in templates of secrets writes it. No message shows a token.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Any, Literal, get_args

from cpstream_client.contract.token import clean_token

TokenScope = Literal["read", "write", "metrics", "admin"]
SCOPES: tuple[TokenScope, ...] = get_args(TokenScope)
THE_ONE = "default"
"""Name of the token that is set without one."""
MAX_FILE_BYTES = 1024**2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_LINE = re.compile(r"\(at line (\d+)")
_MEMBERS = ("token", "sha256", "scopes", "max_streams", "max_bytes_per_s")
LEAST_BYTES_PER_S = 1_000_000
"""With less a chunk, of 2 MB, would take as long as clients wait for a byte."""


@dataclass(frozen=True)
class Token:
    """What whoever shows it may do. digests: SHA-256 of each of its values."""

    name: str
    scopes: frozenset[TokenScope]
    digests: tuple[bytes, ...] = field(default=(), repr=False)
    max_streams: int | None = None
    max_bytes_per_s: int | None = None


@dataclass(frozen=True)
class Tokens:
    """All that are valid; none where whoever reaches the service may read."""

    tokens: tuple[Token, ...] = ()

    def find(self, value: bytes) -> Token | None:
        """The token of this value. Takes as long whichever it is, or none."""
        digest, found = sha256(value).digest(), None
        for token in self.tokens:
            for known in token.digests:
                if compare_digest(digest, known):
                    found = token
        return found


def tokens_of(one: str | None, path: Path | None) -> Tokens:
    """The one of the settings, and those of the file. Raises ValueError, to be put after the file's name."""
    tokens = () if path is None else read_tokens(path)
    if one is None:
        return Tokens(tokens)
    default = Token(THE_ONE, frozenset(SCOPES), (sha256(one.encode()).digest(),))
    for token in tokens:
        if token.name == default.name:
            raise ValueError(f"is {str(path)!r}, and [{token.name}] is the name of the token that is set beside it; choose another")
        if set(token.digests) & set(default.digests):
            raise ValueError(
                f"is {str(path)!r}, and [{token.name}] is the token that is set beside it, with all scopes; leave one out"
            )
    return Tokens((*tokens, default))


def read_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file. Raises ValueError, to be put after its name: "tokens_file " + message."""
    text = _text_of(path)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # whose message may show a part of a token
        found, repeated = _LINE.search(str(error)), "twice" in str(error) or "overwrite" in str(error)
        at = f"line {found[1]}" if found else "its end"
        what = "it gives a name twice" if repeated else 'it must be TOML, as in [trainers] and, below, token = "..."'
        raise ValueError(f"is {str(path)!r}, and {at} is wrong: {what}") from None
    lines = {name: next((n for n, line in enumerate(text.splitlines(), 1) if _is_header(line, name)), 0) for name in tables}
    owners: dict[bytes, str] = {}
    tokens = []
    for name, table in tables.items():
        is_named = isinstance(table, dict) and _NAME.fullmatch(name)  # what stands elsewhere may be a token
        where = f"is {str(path)!r}, and " + (f"[{name}] in line {lines[name]} " if is_named else "it ")
        try:
            token = _token_of(name, table)
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None
        for digest in token.digests:
            if digest in owners:
                raise ValueError(f"{where}has the token of [{owners[digest]}]; give each its own")
            owners[digest] = name
        tokens.append(token)
    if not tokens:
        raise ValueError(f"is {str(path)!r}, which holds no token; leave it out to serve without")
    return tuple(tokens)


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"is {str(path)!r}: {error.strerror}; it must be a TOML file of tokens") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"is {str(path)!r}, which is longer than {MAX_FILE_BYTES} bytes; it must be a TOML file of tokens")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"is {str(path)!r}, which is not UTF-8 text; it must be a TOML file of tokens") from None


def _is_header(line: str, name: str) -> bool:
    return re.fullmatch(rf"\s*\[\s*[\"']?{re.escape(name)}[\"']?\s*\]\s*(#.*)?", line) is not None


def _token_of(name: str, table: object) -> Token:
    if not isinstance(table, Mapping):
        raise ValueError('has a member outside of a table; begin each token with its name: [trainers] and, below, token = "..."')
    if not _NAME.fullmatch(name):
        raise ValueError("has a token whose name is not of 1 to 64 letters, digits, '.', '_' and '-'; choose another")
    for member in table:
        if member not in _MEMBERS:
            raise ValueError(f"has a member that is none of {', '.join(_MEMBERS)}; take it out")
    scopes, digests = _scopes_of(table.get("scopes", ["read"])), _digests_of(table)
    return Token(name, scopes, digests, _limit_of(table, "max_streams", 1), _limit_of(table, "max_bytes_per_s", LEAST_BYTES_PER_S))


def _limit_of(table: Mapping[str, Any], member: str, least: int) -> int | None:
    limit = table.get(member)
    if limit is None or (isinstance(limit, int) and not isinstance(limit, bool) and limit >= least):
        return limit
    raise ValueError(f"has a {member} that is no whole number, {least} or more")


def _scopes_of(given: Any) -> frozenset[TokenScope]:
    wrong = [scope for scope in given if scope not in SCOPES] if isinstance(given, list) else [given]
    if wrong or not given:
        what = "none" if not given else repr(wrong[0])[:80]
        raise ValueError(f"has scopes with {what}; they must be a list of some of {', '.join(SCOPES)}")
    return frozenset(given)


def _digests_of(table: Mapping[str, Any]) -> tuple[bytes, ...]:
    if ("token" in table) == ("sha256" in table):
        raise ValueError("must have either token or sha256")
    member = "token" if "token" in table else "sha256"
    values = table[member] if isinstance(table[member], list) else [table[member]]
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"has a {member} that is no text; put it in quotes, or several in a list")
    if member == "token":
        try:
            digests = [sha256(clean_token(value).encode()).digest() for value in values]
        except ValueError as error:
            raise ValueError(f"has a token that {error}") from None
    else:
        if not all(_SHA256.fullmatch(value) for value in values):
            raise ValueError('has a sha256 that is not 64 hexadecimal digits; printf %s "$TOKEN" | sha256sum prints it')
        digests = [bytes.fromhex(value) for value in values]
    if len(set(digests)) < len(digests):
        raise ValueError(f"has the same {member} twice; leave one out")
    return tuple(digests)
