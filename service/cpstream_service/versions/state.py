"""What the keeper tells its workers, and what they tell it: the content of the files in control.py's folder."""

from pydantic import BaseModel, Field

from cpstream_client.contract.versions import Progress, Reload, RunningReload


class Held(BaseModel, frozen=True):
    """A version that every worker is to hold. path: of its snapshot; made_at: when that was written."""

    path: str
    made_at: str


class State(BaseModel, frozen=True):
    """What every worker is to be at. seq: grows with each change that a worker must follow; progress changes without it.

    held: all versions by their keys, oldest first; current: the key of one of them, None before the first is open everywhere.
    reload: the one that runs, last: the one before. Counters are since the start: observability may show them.
    """

    seq: int = 0
    held: dict[str, Held] = Field(default_factory=dict)
    current: str | None = None
    stale_reason: str | None = None
    refused: list[str] = Field(default_factory=list)
    """Keys of what lies in the snapshot folder and cannot be opened."""
    progress: Progress | None = None
    reload: RunningReload | None = None
    last: Reload | None = None
    num_succeeded: int = 0
    num_unchanged: int = 0
    num_failed: int = 0
    load_s: float | None = None
    """Seconds that the last load took which gave a version."""


class Ack(BaseModel, frozen=True):
    """A worker has followed up to seq. failed: why versions could not be opened, by their keys."""

    seq: int
    failed: dict[str, str] = Field(default_factory=dict)
