"""Everything that can be set, in one place. Each field is an option of `cpstream serve` and a CPSTREAM_* variable.

The command line builds these objects and hands them to `create_app`; nothing here reads the environment.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


def _default_snapshot_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpstream"


class SettingsError(ValueError):
    """A setting is out of range. The message names it, its value and its range."""


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


@dataclass(frozen=True, kw_only=True)
class ChromaSettings:
    """A Chroma server, and what in it."""

    chroma_url: str | None = None
    """URL of a Chroma server, http or https, with any prefix; instead of --source-path."""
    chroma_host: str | None = None
    """Host of a Chroma server without TLS, instead of --chroma-url."""
    chroma_port: int = 8000
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


@dataclass(frozen=True, kw_only=True)
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
    match: Literal["path", "stem", "name"] = "path"
    """What of two paths must be equal: all, all but the extension, or the file name alone where it is unique on both sides."""
    map_root: tuple[str, ...] = ()
    """A=B: paths in folder A count as lying in folder B; may be given again. The report says which would match what is left."""
    splits: tuple[str, ...] = ()
    """Splits to serve; all that the source holds when not given."""
    strict: bool = False
    """Refuse to start when alignment drops anything."""
    snapshot_dir: Path = field(default_factory=_default_snapshot_dir)
    """Folder of the aligned snapshots, memory-mapped by every worker process."""

    def __post_init__(self) -> None:
        for text in self.map_root:
            parse_root(text)


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How the service listens and what it allows."""

    host: str = "0.0.0.0"  # noqa: S104 - trainers are other machines; docs/operations.md says how to restrict it
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    workers: int = 1
    """Worker processes. They share the snapshot's memory; one serves about 2 GB/s."""
    token: str | None = None
    """Bearer token that every request under /v1 must carry; none by default."""
    max_streams: int = 256
    """Batch streams at once per worker process; one more is answered 503 overloaded."""
    max_reply_bytes: int = 2 * 1024**3
    """Largest reply to one batches or take request, in bytes; a larger one is answered 413."""
    max_json_rows: int = 1024
    """Most samples that a JSON reply may hold."""
    drain_timeout_s: float = 10.0
    """Seconds that open streams get to finish after SIGTERM."""
    log_format: Literal["text", "json"] = "text"
    """Log lines for people (text) or for machines (json)."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65535),
            ("workers", 1, 1024),
            ("max_streams", 1, None),
            ("max_reply_bytes", 1, None),
            ("max_json_rows", 1, None),
            ("drain_timeout_s", 0, None),
        ):
            value = getattr(self, name)
            if not low <= value or (high is not None and value > high):  # so that NaN is refused, too
                allowed = f"{low} or more" if high is None else f"from {low} to {high}"
                raise SettingsError(f"{name} is {value}; it must be {allowed} (CPSTREAM_{name.upper()})")
        if self.token == "":
            raise SettingsError("token is empty; leave it out to serve without one (CPSTREAM_TOKEN)")
