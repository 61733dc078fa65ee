"""Which snapshots hold what the forget list names, and how they are removed.

<snapshot_dir>/.forgotten   fingerprints of the splits that held some of it, one a line: workers, replicas and later starts know
                            by it what was forgotten, although they never had it open
"""

import csv
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cpstream_client.files import no_follow

from ..align.forget import NOTHING, ForgetList, read_forget_list
from ..align.match import MatchRule, normalise_path
from ..arrow import strings
from ..errors import DataError
from ..settings import DataSettings, parse_root
from .dropped import dropped_paths
from .store import PLACED, Snapshot, SnapshotInvalid, Split, open_snapshot, read_manifest

logger = logging.getLogger("cpstream.service")

FILE = ".forgotten"
_WITHOUT_EXTENSION = ("npy-folder", "kaldi")
_SETTLED_S = 2.0
_AGAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Judge:
    """Says which splits hold a listed recording. Where its path alone does not say so for certain, it is taken to be one."""

    forget: ForgetList
    rule: MatchRule

    @classmethod
    def of(cls, settings: DataSettings, forget: ForgetList | None = None) -> "Judge":
        """Raises DataError where the list cannot be read."""
        rule = MatchRule.of([parse_root(text) for text in settings.map_root], settings.match)
        rule = rule.with_bare_keys() if settings.source_type in _WITHOUT_EXTENSION else rule
        return cls(read_forget_list(settings.forget_list) if forget is None else forget, rule)

    def trusts(self, snapshot: Snapshot) -> bool:
        """Whether alignment left out just what is listed now."""
        return snapshot.forgotten == self.forget.digest

    def forgotten_in(self, snapshot: Snapshot) -> set[str]:
        """The fingerprints of its splits that hold a listed recording."""
        if not self.forget.keys or self.trusts(snapshot):
            return set()
        return {split.fingerprint for split in snapshot.splits.values() if self._holds(split)}

    def listed(self, snapshots: Iterable[Snapshot]) -> Callable[[str], bool]:
        """What says whether a path is a listed recording's, as far as the path alone does. snapshots: where it may be from."""
        keys = self._keys(split for snapshot in snapshots for split in snapshot.splits.values())
        if self.rule.plain:
            return lambda path: normalise_path(path) in keys
        names = {self.rule.compared(key, bare) for key in keys for bare in (False, True)}
        return lambda path: any(self.rule.compared(normalise_path(path), bare) in names for bare in (False, True))

    def _keys(self, splits: Iterable[Split]) -> set[str]:
        """What is listed, and the paths that stand for it on the other side."""
        keys = set(self.forget.keys)
        for root in (root for split in splits for root in split.report.roots if root.applied):
            for old, new in ((root.cps, root.embeddings), (root.embeddings, root.cps)):
                keys.update(new + key[len(old) :] for key in self.forget.keys if key.startswith(old))
        return keys

    def _holds(self, split: Split) -> bool:
        import pyarrow.compute as pc  # 20 ms, which a service without a list has no use for

        keys = self._keys([split])
        if pc.any(pc.is_in(split.file_paths, value_set=strings(sorted(keys)))).as_py():
            return True
        if not self.rule.plain:
            names = {self.rule.compared(key, bare) for key in keys for bare in (False, True)}
            if any(self.rule.compared(path) in names for path in split.file_paths.to_pylist()):
                return True
        if any(normalise_path(text) in keys for text in _examples(split)):
            return True
        try:
            return any(normalise_path(path) in keys for path in dropped_paths(split.path))
        except (OSError, csv.Error):
            return True


def _examples(split: Split) -> Iterable[str]:
    """The paths that a split's report shows to clients."""
    report = split.report
    for entry in (*report.dropped, *report.warnings, *report.leaks):
        for example in entry.examples:
            yield from (example, example.partition(": ")[0], example.partition(" (line")[0], example.partition(": ")[2])
    for spelling in report.spellings:
        for example in spelling.examples:
            yield from example.split(" and ")


# What was forgotten


def remember(snapshot_dir: Path, fingerprints: Iterable[str]) -> None:
    """Write down what is forgotten, for whoever shares the folder. What cannot be written is said in the log."""
    new = sorted(set(fingerprints) - remembered(snapshot_dir))
    if not new:
        return
    try:
        held = no_follow(str(snapshot_dir / FILE), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(held, "".join(f"{fingerprint}\n" for fingerprint in new).encode())
        finally:
            os.close(held)
    except OSError as error:
        logger.warning("cannot write down what was forgotten in %s: %s; replicas go by their own lists", snapshot_dir, error)


def remembered(snapshot_dir: Path) -> set[str]:
    """The fingerprints that were written down."""
    try:
        held = no_follow(str(snapshot_dir / FILE), os.O_RDONLY)
    except OSError:
        return set()
    with os.fdopen(held, encoding="ascii", errors="replace") as file:
        return set(file.read().split())


def purge(settings: DataSettings, identity: str, judge: Judge, keep: str) -> list[str]:
    """Remove the snapshots of these settings that hold a listed recording, and all that was made from them, whoever has them open.

    keep: the key of the one that is served until there is another. Returns the keys of those removed. Those of other settings are
    not this service's to remove: the log says how many hold such paths.
    """
    removed, others = [], 0
    snapshot_dir = settings.snapshot_folder()
    for manifest in snapshot_dir.glob(PLACED):
        folder = manifest.parent
        try:
            body = read_manifest(folder)
            is_made_by_it = body.get("forgotten", "") == judge.forget.digest
            if not judge.forget.keys or is_made_by_it or folder.name == keep:
                continue
            found = judge.forgotten_in(open_snapshot(folder, verify=False))
        except SnapshotInvalid:
            continue
        if found and body["identity"] == identity:
            remember(snapshot_dir, found)
            _remove(folder)
            removed.append(folder.name)
        elif found:
            others += 1
    if others:
        logger.warning(
            "%d snapshots of other settings in %s hold paths of the forget list: remove them, if they are of the same recordings",
            others,
            snapshot_dir,
        )
    return removed


def _remove(folder: Path) -> None:
    """At once for whoever opens it, then piece by piece."""
    gone = folder.with_name(f".writing-{folder.name}-forgotten-{secrets.token_hex(4)}")
    try:
        folder.rename(gone)
    except OSError as error:
        logger.error("cannot remove %s, which holds a recording to be forgotten: %s; remove it by hand", folder, error)
        return
    shutil.rmtree(gone, ignore_errors=True)
    if gone.exists():
        logger.error("cannot remove all of %s, which holds a recording to be forgotten; remove it by hand", gone)


class ListWatch:
    """Sees when the list says something else than the list by which the current data was aligned. For one thread."""

    def __init__(self, settings: DataSettings) -> None:
        self._settings = settings
        self._stamp: tuple[int, ...] | None = (0,)
        self._list = NOTHING
        self._asked = ("", 0.0)

    def wants_reload(self, made_by: str) -> bool:
        """Whether to reload now: once for each list, and again every 30 s while the data is not made by it. made_by: its digest."""
        digest, now = self.read().digest, time.monotonic()
        if digest == made_by or (self._asked[0] == digest and now - self._asked[1] < _AGAIN_S):
            return False
        self._asked = digest, now
        return True

    def read(self) -> ForgetList:
        """The list as it is now; as it was, where it cannot be read, or has lost paths and may still be on its way."""
        stamp = stamp_of(self._settings.forget_list)
        if stamp == self._stamp:
            return self._list
        try:
            new = read_forget_list(self._settings.forget_list)
        except DataError as error:
            logger.error("%s; the list that was read before goes on", error)
            self._stamp = stamp
            return self._list
        if self._list.keys <= new.keys or stamp is None or time.time() - stamp[-1] / 1e9 >= _SETTLED_S:
            self._stamp, self._list = stamp, new
        return self._list


def stamp_of(path: Path | None) -> tuple[int, ...] | None:
    """By which a file that changed is known; None where there is none."""
    try:
        status = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if status is None else (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
