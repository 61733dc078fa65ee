"""Which versions every worker holds, and which of them is current.

Each is a change of the state that control.py hands out, and is waited for until all workers have followed it. For the keeper's
thread alone.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..align.forget import ForgetList
from ..errors import DataError
from ..settings import DataSettings
from ..snapshot.forgotten import Judge, purge
from ..snapshot.last_use import LastUse, Retention
from ..snapshot.locks import remove_outdated, remove_unless_open
from ..snapshot.store import Snapshot, SnapshotInvalid, open_snapshot
from .control import Control
from .state import Held, State

logger = logging.getLogger("cpstream.service")

_ACK_POLL_S = 0.01
_RETIRE_S = 30.0
"""Between two looks for versions that nobody uses any more."""


class Roster:
    """state: what workers were told last.

    workers: gives the ids of the processes that serve. ended: set where the service ends, and nobody is waited for any more.
    identity: of the settings that snapshots are made by; set before anything is made current.
    """

    def __init__(
        self,
        data: DataSettings,
        control: Control,
        retention: Retention,
        workers: Callable[[], Iterable[int]],
        ended: threading.Event,
    ) -> None:
        self.state = State()
        self.identity = ""
        self._data, self._control, self._retention = data, control, retention
        self._workers, self._ended = workers, ended
        self._snapshots: dict[str, Snapshot] = {}
        self._to_remove: set[Path] = set()
        self._retire_at_s = 0.0

    @property
    def current(self) -> Snapshot | None:
        return self._snapshots.get(self.state.current or "")

    # Versions that come

    def take(self, snapshot: Snapshot, *, oldest: bool = False) -> None:
        """Have every worker open a version. Raises DataError where one cannot."""
        key = snapshot.path.name
        held = {name: version for name, version in self.state.held.items() if name != key}
        this = {key: Held(path=str(snapshot.path), made_at=snapshot.created_at)}
        failed = self._switch(held=this | held if oldest else held | this)
        if failed:
            self._switch(held=held)
            raise DataError(f"a worker cannot open version {key}: {failed.get(key, '; '.join(failed.values()))}; reload again")
        self._snapshots[key] = snapshot

    def make_current(self, snapshot: Snapshot, stale_reason: str | None, load_s: float) -> None:
        """One that all workers hold. load_s: seconds that it took to be there."""
        self._switch(current=snapshot.path.name, stale_reason=stale_reason, progress=None, load_s=load_s)

    def open_other(self, key: str) -> None:
        """A version that another replica made, and that somebody asks for by its fingerprint."""
        if key in self._snapshots:
            return
        try:
            snapshot = opened(self._data.snapshot_folder() / key, verify=True)
            LastUse(snapshot.path).note()
            self.take(snapshot, oldest=True)
            logger.info("holding version %s, which lies in the snapshot folder, for requests that pin it", key)
        except DataError as error:
            logger.warning("cannot serve version %s, which lies in the snapshot folder: %s", key, error)
            self.publish(refused=[*self.state.refused, key])

    # Versions that go

    def retire_in_time(self) -> None:
        """Every half minute at least, retire."""
        if time.monotonic() >= self._retire_at_s:
            self.retire()

    def retire(self) -> None:
        """Drop the versions that nobody needs any more, and their files."""
        self._retire_at_s = time.monotonic() + min(_RETIRE_S, max(1.0, self._retention.for_s / 4))
        older = [key for key in self.state.held if key != self.state.current]
        kept = self._retention.versions - 1
        gone = [key for key in older[: len(older) - kept] if not self._retention.still_used(self._snapshots[key].path)]
        self.drop(gone)
        self._control.forget_workers(self._workers())
        self._to_remove = {path for path in self._to_remove if not remove_unless_open(path)}
        if self.current is not None:
            remove_outdated(self.current.path.parent, self.identity, self.current.path, self._retention)

    def purge(self, forget_list: ForgetList) -> None:
        """Drop what holds something to be forgotten, and remove its files, whoever has them open. The current one holds none."""
        current = self.state.current
        if current is None:
            return
        judge = Judge.of(self._data, forget_list)
        gone = [key for key, snapshot in self._snapshots.items() if key != current and judge.forgotten_in(snapshot)]
        self.drop(gone)
        for key in purge(self._data, self.identity, judge, keep=current):
            logger.info("removed the files of version %s, which held a recording to be forgotten", key)

    def drop(self, among: Iterable[str]) -> None:
        """Have every worker let go of those that are held; their files are removed as soon as nobody has them open."""
        keys = [key for key in among if key in self._snapshots]
        if not keys:
            return
        held = {key: version for key, version in self.state.held.items() if key not in keys}
        current = self.state.current if self.state.current in held else None
        self._switch(held=held, current=current)
        for key in keys:
            path = self._snapshots.pop(key).path
            logger.info("dropped version %s", key)
            if not remove_unless_open(path):
                self._to_remove.add(path)

    # The state

    def publish(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)
        self._control.publish(self.state)

    def _switch(self, **changes: object) -> dict[str, str]:
        """Change what workers must follow, and wait until all have. Returns why versions could not be opened, by their keys."""
        seq = self.state.seq + 1
        self.publish(seq=seq, **changes)
        failed: dict[str, str] = {}
        while not self._ended.is_set():
            acks = [self._control.ack_of(pid) for pid in self._workers()]  # again: one that died has a successor
            if acks and all(ack.seq >= seq for ack in acks):
                for ack in acks:
                    failed |= ack.failed
                break
            self._ended.wait(_ACK_POLL_S)
        return failed


def opened(path: Path, *, verify: bool) -> Snapshot:
    """A snapshot that is to be served. Raises DataError where it cannot be opened."""
    try:
        return open_snapshot(path, verify=verify)
    except SnapshotInvalid as error:
        raise DataError(f"the snapshot that was loaded cannot be opened: {error}; reload again") from error
