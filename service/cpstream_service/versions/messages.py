"""What a process that loads or watches says, over its connection. Pickled: both ends are this program."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..settings import DataSettings, ServeSettings


@dataclass(frozen=True)
class Task:
    """What such a process is to do. seen: for watch, how the source looked when it was last loaded (snapshot.inputs.seen_of)."""

    do: Literal["load", "watch"]
    data: DataSettings
    settings: ServeSettings
    show_progress: bool = False
    seen: str = ""


@dataclass(frozen=True)
class Told:
    """How far it is."""

    phase: str
    rows: int | None
    total: int | None


@dataclass(frozen=True)
class Written:
    """A whole snapshot, verified. seen: how the source looked before it was read; empty where nobody watches."""

    path: Path
    stale_reason: str | None
    notes: list[str]
    seen: str


@dataclass(frozen=True)
class Failed:
    """Why there is none. Raised again where the service starts."""

    error: Exception


@dataclass(frozen=True)
class SourceChanged:
    """The source looks otherwise than when it was last loaded, and has settled."""

    seen: str
