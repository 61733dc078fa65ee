"""Everything that can be set, in one place. Each field is an option of `cpstream serve` and a CPSTREAM_* variable.

The command line builds these objects and hands them to `create_app`; importing this reads neither environment nor disk.
"""

import os
import re
from dataclasses import field
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass

from cpstream_client.contract.token import clean_token, read_token
from cpstream_client.contract.wire import COLUMNS, is_misspelt

from .setting_errors import ENV_PREFIX, SettingsError, in_our_words
from .tls import server_context
from .tokens import tokens_of

TextCount = Literal["characters", "no-spaces", "letters"]
ROLES = ("train", "dev", "test")
_CONFIG = ConfigDict(allow_inf_nan=False, extra="forbid")
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?)([smhd]?)")
_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_NAME = re.compile(r"\{[A-Za-z_]*\}")


def _default_snapshot_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "cpstream"


def parse_root(text: str) -> tuple[str, str]:
    """The folders A and B of A=B. The = is the first one after a /, or else the first, as a folder's name may hold one.

    Raises SettingsError.
    """
    at = text.find("/=") + 1 or text.find("=")
    if at <= 0 or not text[:at].strip():
        raise SettingsError(
            f"map_root is {text!r}; it must be A=B, the folder that paths begin with and the one to read in its stead, "
            "or nothing, as in /data/audio/=audio/ or /data/= (CPSTREAM_MAP_ROOT)"
        )
    return text[:at], text[at + 1 :]


def _seconds_of(text: str) -> float:
    """Seconds of a duration. Raises ValueError."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"keep_for is {text!r}; it must be a number with s, m, h or d behind it, as in 30m ({ENV_PREFIX}KEEP_FOR)")
    return float(found[1]) * _UNIT_S[found[2]]


@in_our_words
@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class ChromaSettings:
    """A Chroma server, and what in it."""

    chroma_url: str | None = None
    """URL of a Chroma server, http or https, with any prefix; instead of --source-path."""
    chroma_host: str | None = None
    """Host of a Chroma server without TLS, instead of --chroma-url."""
    chroma_port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the Chroma server at --chroma-host."""
    chroma_token_file: Path | None = None
    """File of the token that the Chroma server wants."""
    chroma_headers_file: Path | None = None
    """File of further HTTP headers for the Chroma server, one a line: Name: value."""
    chroma_ca_file: Path | None = None
    """Certificates (PEM) that the Chroma server's is checked by; those of the system when not given."""
    chroma_tenant: str = "default_tenant"
    """Chroma's tenant."""
    chroma_database: str = "default_database"
    """Chroma's database within the tenant."""
    collection_name: str = "speed_embeddings"
    """Chroma collection that holds the embeddings."""


@in_our_words
@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class DataSettings(ChromaSettings):
    """Where the data lies and how it is aligned."""

    source_type: Literal["npy", "chromadb", "npy-folder", "parquet", "kaldi"] = "npy"
    """Kind of source: npy (a folder with numpy_embs.npy), chromadb (a Chroma folder or server), npy-folder (one .npy file each),
    parquet (a file, a folder of them, or a saved Hugging Face dataset) or kaldi (an .scp or .ark of vectors)."""
    source_path: Path | None = None
    """Folder or file of the source: of numpy_embs.npy, of a Chroma database, ...; {split} in it stands for the split."""
    cps_csv: str = "{split}_cps.csv"
    """Path of the CPS tables, {split} standing for the split. A bare file name is looked for in --source-path."""
    path_column: str = "audio_path"
    """Column of the CPS table that holds the path of the recording."""
    cps_column: str = "cps"
    """Column of the CPS table that holds the speech rate, characters per second."""
    csv_encoding: str = "utf-8"
    """Encoding of CSV tables that have no byte order mark, such as cp1251."""
    cps_from: Literal["table", "source"] = "table"
    """Where the rates are: in the CPS tables, or in a column or key of the source itself."""
    text_column: str = "text"
    """Column or key of what was said: where there is no --cps-column, the rate is computed from it and its duration."""
    duration_column: str = "duration"
    """Column or key of how long it took, in seconds."""
    text_count: TextCount = "characters"
    """What of the text is counted: characters (NFC code points, ends stripped), no-spaces, or letters (and digits)."""
    labels: tuple[str, ...] = ()
    """Further numeric columns, from where the rates are, to serve by their names."""
    match: Literal["path", "stem", "name"] = "path"
    """What of two paths must be equal: all, all but the extension, or the file name alone where it is unique on both sides."""
    map_root: tuple[str, ...] = ()
    """A=B: paths in folder A count as lying in folder B; may be given again. The report says which would match what is left."""
    splits: tuple[str, ...] = ()
    """Splits to serve; all that the source holds when not given."""
    strict: bool = False
    """Refuse to start when alignment drops anything."""
    forget_list: Path | None = None
    """File of recordings to leave out, paths, one a line; read again whenever it changes while the service runs."""
    snapshot_dir: Path = field(default_factory=_default_snapshot_dir)
    """Folder of the aligned snapshots, memory-mapped by every worker process."""

    def snapshot_folder(self) -> Path:
        """snapshot_dir, without ~. Raises SettingsError where this stands for no folder: not every command needs one."""
        try:
            return self.snapshot_dir.expanduser()
        except RuntimeError:
            raise SettingsError(
                f"snapshot_dir is {str(self.snapshot_dir)!r}, and the user has no home folder; set HOME, or it to another folder "
                f"(--snapshot-dir, {ENV_PREFIX}SNAPSHOT_DIR)"
            ) from None

    @field_validator("labels")
    @classmethod
    def _names_of_their_own(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        for name in labels:
            if not _LABEL.fullmatch(name) or name in COLUMNS or is_misspelt(name) or labels.count(name) > 1:
                raise ValueError(
                    f"labels holds {name!r}; each must be of letters, digits and _, once, and not like any of "
                    f"{', '.join(COLUMNS)}: rename the column ({ENV_PREFIX}LABELS)"
                )
        return labels

    @field_validator("map_root")
    @classmethod
    def _two_folders(cls, map_root: tuple[str, ...]) -> tuple[str, ...]:
        for text in map_root:
            parse_root(text)
        return map_root

    @field_validator("csv_encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except (LookupError, ValueError):
            raise ValueError(
                f"csv_encoding is {encoding!r}, which is no encoding; set it to one of Python's, such as utf-8, cp1251 or cp1252 "
                f"({ENV_PREFIX}CSV_ENCODING)"
            ) from None
        return encoding

    @field_validator("splits")
    @classmethod
    def _named(cls, splits: tuple[str, ...]) -> tuple[str, ...]:
        if "" in splits:
            raise ValueError(f"splits holds an empty name; name splits, or leave it out for all ({ENV_PREFIX}SPLITS)")
        return splits

    @field_validator("cps_csv", "source_path")
    @classmethod
    def _known_names(cls, template: str | Path | None, info: ValidationInfo) -> str | Path | None:
        for name in _NAME.findall(str(template)):
            if name != "{split}":
                raise ValueError(
                    f"{info.field_name} is {str(template)!r}, and {name} stands for nothing; only {{split}} does "
                    f"({ENV_PREFIX}{str(info.field_name).upper()})"
                )
        return template


@in_our_words
@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class ServeSettings:
    """How the service listens and what it allows."""

    host: str = "0.0.0.0"  # noqa: S104 - trainers are other machines; docs/operations.md says how to restrict it
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Worker processes. They share the snapshot's memory; one serves about 2 GB/s."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that requests must carry, with all scopes; none by default."""
    token_file: Path | None = None
    """File that holds the token and nothing else, instead of --token: a mounted secret."""
    tokens_file: Path | None = None
    """TOML file of several tokens by name, each with its scopes (read, write, metrics, admin)."""
    roles: tuple[str, ...] = ()
    """ROLE=SPLIT: the split that statistics take for train, dev or test, where its name does not say so; may be given again."""
    tls_cert_file: Path | None = None
    """Certificate for TLS (PEM), its chain behind it, and its key unless that has a file of its own; no TLS by default."""
    tls_key_file: Path | None = None
    """Key of the certificate (PEM), where it is not in --tls-cert-file."""
    tls_client_ca_file: Path | None = None
    """CA certificates (PEM): clients must show a certificate that one of them has issued; health checks need none."""
    max_streams: Annotated[int, Field(ge=1)] = 256
    """Streams of batches and downloads at once per worker process; one more is answered 503 overloaded."""
    max_streams_per_client: Annotated[int, Field(ge=1)] = 192
    """Streams of one client at once per worker process, by its address; one more is answered 429 too-many-streams."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For or PROXY protocol says who the client is; by default nobody's."""
    max_reply_bytes: Annotated[int, Field(ge=1)] = 2 * 1024**3
    """Largest reply to one batches or take request, in bytes; a larger one is answered 413."""
    max_json_rows: Annotated[int, Field(ge=1)] = 1024
    """Most samples that a JSON reply may hold."""
    max_bodies_bytes: Annotated[int, Field(ge=1)] = 256 * 1024**2
    """Bytes of request bodies at once per worker process, half of them of one client; more waits, then gets 503 overloaded."""
    state_dir: Path | None = None
    """Folder of what clients send to be kept, such as predictions, which replicas may share; without one they are refused."""
    max_predictions_bytes: Annotated[int, Field(ge=1)] = 1024**3
    """Bytes of all runs of predictions together, on disk."""
    body_timeout_s: Annotated[float, Field(ge=1)] = 30.0
    """Seconds that a body may stop arriving before its request is answered 408, or wait for room before it gets 503."""
    stall_timeout_s: Annotated[float, Field(ge=1)] = 300.0
    """Seconds after which a reply of which nothing is taken any more is ended, and its stream free for others."""
    watch: bool = False
    """Reload when the source changes: the files, their sizes or times, or the ids in the Chroma collection."""
    watch_interval_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two looks at the source; what two looks find alike has settled, and is loaded."""
    keep_versions: Annotated[int, Field(ge=1)] = 2
    """Versions of the data kept for requests that pin their fingerprint: the current one, and those before it."""
    keep_for: str = "1h"
    """How long an older version is kept at least since a request pinned to it came last: 90s, 30m, 1h or 2d."""
    drain_timeout_s: Annotated[float, Field(ge=0)] = 10.0
    """Seconds that open streams get to finish after SIGTERM."""
    log_format: Literal["text", "json"] = "text"
    """Log lines for people (text) or for machines (json)."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged."""

    @field_validator("roles")
    @classmethod
    def _known_roles(cls, roles: tuple[str, ...]) -> tuple[str, ...]:
        named = [text.partition("=")[0] for text in roles]
        for text, role in zip(roles, named, strict=True):
            if role not in ROLES or not text.partition("=")[2] or named.count(role) > 1:
                raise ValueError(
                    f"roles holds {text!r}; each must be ROLE=SPLIT, once, with a role of {', '.join(ROLES)}, as in dev=held-out "
                    f"({ENV_PREFIX}ROLES)"
                )
        return roles

    @property
    def keep_for_s(self) -> float:
        return _seconds_of(self.keep_for)

    @field_validator("keep_for")
    @classmethod
    def _duration(cls, text: str) -> str:
        _seconds_of(text)
        return text

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                ip_network(proxy)
            except ValueError:
                raise ValueError(
                    f"trusted_proxies holds {proxy!r}; each must be an address or a network, as in 10.0.0.7 or 10.0.0.0/8 "
                    f"({ENV_PREFIX}TRUSTED_PROXIES)"
                ) from None
        return proxies

    @field_validator("token")
    @classmethod
    def _token_of_a_header(cls, token: str | None) -> str | None:
        try:
            return None if token is None else clean_token(token)
        except ValueError as error:
            raise ValueError(f"token {error}; leave it out to serve without one ({ENV_PREFIX}TOKEN)") from None

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.token_file is not None:
            try:
                token = read_token(self.token_file)
            except ValueError as error:
                raise ValueError(f"token_file {error} ({ENV_PREFIX}TOKEN_FILE)") from None
            if self.token not in (None, token):
                raise ValueError(
                    f"token and token_file are both given, and differ; leave one out ({ENV_PREFIX}TOKEN, {ENV_PREFIX}TOKEN_FILE)"
                )
            object.__setattr__(self, "token", token)
        if self.tokens_file is not None:
            try:
                tokens_of(self.token, self.tokens_file)
            except ValueError as error:
                raise ValueError(f"tokens_file {error} ({ENV_PREFIX}TOKENS_FILE)") from None
        if self.tls_cert_file is not None:
            try:
                server_context(self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file)
            except ValueError as error:
                raise ValueError(f"{error} ({ENV_PREFIX}TLS_CERT_FILE)") from None
        for name in ("tls_key_file", "tls_client_ca_file"):
            if getattr(self, name) is not None and self.tls_cert_file is None:
                raise ValueError(
                    f"{name} is {str(getattr(self, name))!r}, and there is no certificate; give it, too (--tls-cert-file, "
                    f"{ENV_PREFIX}TLS_CERT_FILE)"
                )
        return self

    @property
    def has_token(self) -> bool:
        """Whether a request needs one."""
        return self.token is not None or self.tokens_file is not None
