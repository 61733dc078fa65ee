"""The versions of the data that a worker holds open, and which of them answers a request.

One is current: it answers whatever pins no fingerprint. A request that pins one is answered from the version that has it, for as
long as that is held. A fingerprint is of one split, so that what did not change between versions is in each of them.

    versions.open(version)          hold one more, for what pins it; versions.make_current(version.key) then has it answer the rest
    versions.drop(key)              hold it no more, from now on: what is being sent goes on, from arrays that stay mapped
    versions.split(name, pinned)    the split that a request is to be answered from
    versions.forget(fingerprints)   these splits hold what is to be forgotten: none of them is served from now on

All of it is called in the event loop, or before that runs.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from cpstream_client.contract.bodies import SplitInfo

from ..batches.server import BatchServer
from ..errors import DatasetChanged, Forgotten, NotReady, Reloading, UnknownSplit
from ..settings import ServeSettings
from ..snapshot.last_use import LastUse
from ..snapshot.store import Snapshot, Split
from .files import Downloads


@dataclass(frozen=True, eq=False)
class Version:
    """A snapshot that is served. infos: what is told of each split, with what a client must know to keep to the limits."""

    snapshot: Snapshot
    infos: dict[str, SplitInfo]
    downloads: Downloads
    last_use: LastUse

    @classmethod
    def of(cls, snapshot: Snapshot, settings: ServeSettings) -> "Version":
        """Measures the paths, and so reads some of the disk. Raises OSError."""
        workers = settings.workers if settings.workers > 1 else None
        told = {"max_reply_bytes": settings.max_reply_bytes, "workers": workers}
        infos = {
            name: split.info.model_copy(update={"max_path_bytes": _longest(split), **told})
            for name, split in snapshot.splits.items()
        }
        return cls(snapshot, infos, Downloads(snapshot), LastUse(snapshot.path))

    @property
    def key(self) -> str:
        """Its name among the versions of a service: that of its folder."""
        return self.snapshot.path.name


def _longest(split: Split) -> int:
    """Bytes of the longest path of a split."""
    paths = split.file_paths
    ends = np.frombuffer(paths.buffers()[1], np.int32)[paths.offset : paths.offset + len(paths) + 1]
    return int(np.diff(ends).max(initial=0))


@dataclass
class Versions:
    """What one worker holds. progress: how far loading is, for whoever asks before there is anything.

    stale_reason: why the current version may be older than its source, or None. open_other: whether a split of this fingerprint
    lies in the snapshot folder, which replicas share: then it is held soon. judge: called with what is opened, before it is served;
    says by `forget` what of it holds something to be forgotten. is_listed: whether a path is of a recording to be forgotten.
    """

    batch_server: BatchServer
    stale_reason: str | None = None
    progress: Callable[[], str] = lambda: "the data is being loaded"
    open_other: Callable[[str, str], bool] = lambda split, fingerprint: False
    judge: Callable[[Snapshot], None] = lambda snapshot: None
    is_listed: Callable[[str], bool] = lambda path: False
    _held: dict[str, Version] = field(default_factory=dict)
    _current: Version | None = None
    _forgotten: set[str] = field(default_factory=set)

    @property
    def current(self) -> Version:
        """The version that answers what pins none. Raises NotReady while there is none."""
        if self._current is None:
            raise NotReady(f"{self.progress()}; ask again in a second")
        return self._current

    @property
    def whole(self) -> Version:
        """The current version, of which all splits may be told. Raises as `current`, and Reloading."""
        if self._forgotten:
            for split in self.splits():
                self._check_remembered(split)
        return self.current

    @property
    def is_ready(self) -> bool:
        return self._current is not None

    def is_current(self, version: Version) -> bool:
        return version is self._current

    @property
    def held(self) -> dict[str, Version]:
        """All that are open by their keys, in the order in which they were opened."""
        return dict(self._held)

    def open(self, version: Version) -> None:
        self._held[version.key] = version
        self.batch_server.open(version.snapshot)
        self.judge(version.snapshot)

    def make_current(self, key: str) -> None:
        """Raises KeyError where it is not open."""
        self._current = self._held[key]

    def drop(self, key: str) -> None:
        """No-op where it is not held. The current one may be dropped, too: then nothing is served until another is current."""
        version = self._held.pop(key, None)
        if version is not None and version is self._current:
            self._current = None

    def close(self) -> None:
        """Drop all."""
        for key in list(self._held):
            self.drop(key)

    def forget(self, fingerprints: Iterable[str]) -> set[str]:
        """Serve no split that has one of these, whatever is opened later, until `restore`. Returns those that are new."""
        new = set(fingerprints) - self._forgotten
        self._forgotten |= new
        return new

    @property
    def forgotten(self) -> frozenset[str]:
        """The fingerprints of the splits that are not served, as they hold what is to be forgotten. From any thread."""
        return frozenset(self._forgotten)

    def restore(self, fingerprints: Iterable[str]) -> None:
        """These hold nothing of what is to be forgotten: the list has become shorter."""
        self._forgotten.difference_update(fingerprints)

    def check_whole(self, version: Version, pinned: str | None) -> None:
        """For what depends on the other splits, too. Raises Forgotten, Reloading, where any of them is to be forgotten."""
        for split in version.snapshot.splits.values() if self._forgotten else ():
            if pinned is not None and split.fingerprint in self._forgotten:
                raise Forgotten(split.name, split.fingerprint)
            self._check_remembered(split)

    def _check_remembered(self, split: Split) -> None:
        if split.fingerprint in self._forgotten:
            raise Reloading(
                f"split {split.name!r} holds a recording that is to be forgotten, and the data without it is being loaded; "
                "ask again in a second"
            )

    def splits(self) -> Collection[Split]:
        """Those of the current version; none while there is none."""
        return () if self._current is None else self._current.snapshot.splits.values()

    def split(self, name: str, pinned: str | None = None) -> Split:
        """The split of this name, of the current version or of the one that has the fingerprint.

        Raises NotReady, UnknownSplit, and DatasetChanged when no version that is held has the fingerprint; Forgotten, and Reloading
        where none is pinned, when the split holds what is to be forgotten.
        """
        current = self._current
        if current is not None and not self._forgotten:  # as nearly always
            split = current.snapshot.splits.get(name)
            if split is not None and (pinned is None or pinned == split.fingerprint):
                if pinned is not None:
                    current.last_use.note()
                return split
        return self.find(name, pinned)[1]

    def find(self, name: str, pinned: str | None = None) -> tuple[Version, Split]:
        """The same, with its version."""
        if pinned in self._forgotten:
            raise Forgotten(name, str(pinned))
        version = self.current
        split = version.snapshot.splits.get(name)
        if split is not None and (pinned is None or pinned == split.fingerprint):
            if pinned is not None:
                version.last_use.note()
            elif self._forgotten:
                self._check_remembered(split)
            return version, split
        if pinned is not None:
            for version in reversed(self._held.values()):
                older = version.snapshot.splits.get(name)
                if older is not None and older.fingerprint == pinned:
                    version.last_use.note()
                    return version, older
        if pinned is not None and self.open_other(name, pinned):
            raise NotReady(f"fingerprint {pinned} of split {name!r} is of a version that is being opened; ask again in a second")
        if split is None:
            raise UnknownSplit(name, list(self.current.snapshot.splits))
        raise DatasetChanged(name, str(pinned), split.fingerprint, self._fingerprints(name))

    def _fingerprints(self, name: str) -> list[str]:
        """Those of a split that are held, the newest first."""
        found = (version.snapshot.splits.get(name) for version in reversed(self._held.values()))
        return list(dict.fromkeys(split.fingerprint for split in found if split is not None))
