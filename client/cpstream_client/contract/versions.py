"""The JSON bodies about versions of the data: those that the service holds, reloads, and what differs between two."""

from pydantic import ConfigDict, Field

from .bodies import Body, Count

# Versions and reloads


class Progress(Body, frozen=True):
    """How far loading is."""

    phase: str = Field(description="What is being done now, for people.")
    rows: Count | None = Field(default=None, description="Rows read or written so far in this phase, where they are counted.")
    total: Count | None = Field(default=None, description="How many there are, where that is known.")


class RunningReload(Body, frozen=True):
    """A reload that has not ended."""

    number: Count = Field(description="Which of the reloads since the service started; 0 is the load at its start.")
    reason: str = Field(description="What began it.")
    began_at: str


class Reload(RunningReload, frozen=True):
    """A reload that has ended."""

    ended_at: str
    outcome: str = Field(description="`succeeded`, `unchanged` (the source gave what was current) or `failed`.")
    error: str | None = Field(default=None, description="Why it failed: the old data is served as before.")


class VersionSplit(Body, frozen=True):
    """A split of a version."""

    split: str
    fingerprint: str
    num_samples: Count


class VersionInfo(Body, frozen=True):
    """A version of the data that the service holds."""

    fingerprint: str = Field(description="Of the whole dataset.")
    current: bool = Field(description="Whether requests that pin no fingerprint are answered from it.")
    made_at: str = Field(description="When its snapshot was written.")
    last_used_at: str | None = Field(
        default=None, description="When a request that pinned one of its fingerprints came last, to any replica; to ten seconds."
    )
    splits: tuple[VersionSplit, ...]


class VersionList(Body, frozen=True):
    """Body of GET /v1/versions, the newest first."""

    versions: tuple[VersionInfo, ...]
    reload: RunningReload | None = Field(default=None, description="The reload that runs.")
    progress: Progress | None = Field(default=None, description="How far it is.")
    last_reload: Reload | None = Field(default=None, description="The last one that ended.")


class ReloadAsked(Body, frozen=True):
    """Body of POST /v1/reload."""

    number: Count = Field(description="It is done when the number of `last_reload` has come to this.")
    versions: str = Field(description="Where to look: GET /v1/versions, relative to the service.")


# What differs


class ChangedSample(Body, frozen=True):
    """A sample that two versions of a split both have, and not the same."""

    file_path: str
    what: tuple[str, ...] = Field(description="In what they differ: `embedding`, `rate`, `label`.")
    old_cps: float
    new_cps: float


class SplitDifference(Body, frozen=True):
    """Body of GET /v1/splits/{split}/diff. Compared by path, and to the bit."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    split: str
    from_: str = Field(alias="from", description="Fingerprint of the one version.")
    to: str = Field(description="That of the other.")
    num_same: Count
    num_added: Count
    num_removed: Count
    num_changed: Count
    num_embeddings_changed: Count
    num_rates_changed: Count
    num_labels_changed: Count = Field(description="Of further labels.")
    added: tuple[str, ...] = Field(description="The first paths of those added.")
    removed: tuple[str, ...] = Field(description="The first paths of those removed.")
    changed: tuple[ChangedSample, ...] = Field(description="The first of those changed.")
