"""The one of a service that loads its data: at the start, when it is asked to, when the source changes. A thread beside the server.

A load runs in a process of its own, and gives a snapshot. Every worker opens it, and only then is it made current in all of them:
two changes of the state that control.py hands out, each waited for. What goes wrong before the second leaves the old data current.

    keeper.begin("why")     begin a reload from inside the service's first process; control.ask_reload from a worker
    control.ask_drop(key)   drop a version at once, in every worker, whatever was used of it
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cpstream_client.contract.bodies import Progress, Reload, RunningReload

from ..errors import DataError
from ..settings import DataSettings, ServeSettings
from ..snapshot.forgotten import Judge, ListWatch, purge
from ..snapshot.inputs import identity_of, seen_of
from ..snapshot.last_use import LastUse, Retention
from ..snapshot.load import find_current
from ..snapshot.locks import remove_outdated, remove_unless_open
from ..snapshot.store import Snapshot, SnapshotInvalid, open_snapshot
from .apart import Apart
from .control import Control
from .messages import Failed, SourceChanged, Task, Told, Written
from .state import Held, State

logger = logging.getLogger("cpstream.service")

POLL_S = 0.1
_ACK_POLL_S = 0.01
_RETIRE_S = 30.0
"""Between two looks for versions that nobody uses any more."""
_AGAIN_S = 10.0
_CLOSE_S = 2.0
"""Time to end for the thread, which may be hashing gigabytes."""
_FOLDERS = re.compile(r"(?<![\w:/.])(?:/[^\s/:;,'\"]+)+/")
"""The folders of an absolute path; not a URL's."""
START = "the service starts"


@dataclass(frozen=True)
class Hooks:
    """What the keeper needs of whoever runs the service. All but `workers` are called by its thread.

    workers: the ids of the processes that serve. loading: there is no snapshot to start with. ready: the first version is served;
    renewed: another one is. stop: there is none, and will be none: end the service.
    """

    workers: Callable[[], Iterable[int]]
    loading: Callable[[], None]
    ready: Callable[[Snapshot, list[str], str | None], None]
    renewed: Callable[[Snapshot, list[str]], None]
    stop: Callable[[], None]


class Keeper(threading.Thread):
    """start() begins to load; close() ends it. error: why the first load failed, once hooks.stop has been called."""

    def __init__(self, data: DataSettings, settings: ServeSettings, control: Control, hooks: Hooks, *, show_progress: bool) -> None:
        super().__init__(name="keeper", daemon=True)
        self.error: Exception | None = None
        self._data, self._settings, self._control, self._hooks = data, settings, control, hooks
        self._show_progress = show_progress
        self._retention = Retention(settings.keep_versions, settings.keep_for_s)
        self._identity = ""
        self._state = State()
        self._snapshots: dict[str, Snapshot] = {}
        self._to_remove: set[Path] = set()
        self._loader: Apart | None = None
        self._watcher: Apart | None = None
        self._began_s = self._retire_at_s = self._watch_at_s = 0.0
        self._done = 0
        self._seen = ""
        self._ended = threading.Event()
        self._forget_list = None if data.forget_list is None else ListWatch(data)

    def begin(self, reason: str) -> int:
        """Begin a reload. Returns its number. From any thread."""
        return self._control.ask_reload(reason)

    def close(self) -> None:
        self._ended.set()
        if self.ident is not None:
            self.join(_CLOSE_S)

    # The thread

    def run(self) -> None:
        try:
            if self._first():
                while not self._ended.wait(POLL_S):
                    self._look_on()
        except Exception as error:
            self.error = error
            self._hooks.stop()
        finally:
            for process in (self._loader, self._watcher):
                if process is not None:
                    process.close()

    def _first(self) -> bool:
        """Load, and have it served. Returns whether it is: not, where the service ends meanwhile."""
        self._begin(0, START)
        self._tell(Progress(phase="verifying the snapshot"))
        in_files = self._data.source_type != "chromadb"
        self._seen = seen_of(self._data) if self._settings.watch and in_files else ""
        loaded = find_current(self._data, self._retention)
        if loaded is not None:
            snapshot, notes, stale_reason = loaded.snapshot, loaded.notes, loaded.stale_reason
        else:
            found = self._load(self._hooks.loading)
            if found is None:
                return False
            written, snapshot = found
            notes, stale_reason, self._seen = written.notes, written.stale_reason, written.seen
        self._identity = identity_of(self._data)
        self._take(snapshot)
        self._make_current(snapshot, stale_reason)
        self._end("succeeded")
        if not self._ended.is_set():
            self._hooks.ready(snapshot, notes, stale_reason)
            self._purge()
        return not self._ended.is_set()

    def _load(self, begun: Callable[[], None] = lambda: None) -> tuple[Written, Snapshot] | None:
        """In a process of its own. None where the service ends meanwhile. Raises what went wrong. begun: the source is there."""
        self._loader, is_told = self._apart("load"), False
        while not self._ended.is_set():
            said = self._loader.said(POLL_S)
            if isinstance(said, Told):
                if not is_told:
                    begun()
                is_told = True
                self._tell(Progress(phase=said.phase, rows=said.rows, total=said.total))
            elif said is not None:
                try:
                    if isinstance(said, Failed):
                        raise said.error
                    assert isinstance(said, Written)  # noqa: S101
                    return said, self._opened(said.path, verify=False)  # while the process has it open, so that nobody removes it
                finally:
                    self._loader.close()
                    self._loader = None
        return None

    def _look_on(self) -> None:
        """What is served goes on, whatever happens here."""
        try:
            self._look()
        except Exception:
            logger.exception("the data is served as before, and cannot be reloaded now; tried again in %d s", _AGAIN_S)
            self._ended.wait(_AGAIN_S)

    def _look(self) -> None:
        """Do what is to be done now."""
        dropped = [key for key in self._control.to_drop() if key in self._snapshots]
        if dropped:
            self._drop(dropped)
        for key in self._control.to_open():
            self._open_other(key)
        if self._settings.watch:
            self._look_at_watcher()
        current = self._snapshots.get(self._state.current or "")
        made_by = "" if current is None else current.forgotten
        if self._forget_list is not None and self._forget_list.wants_reload(made_by):
            self.begin("the forget list changed")
        asked = self._control.asked()
        if asked > self._done:
            self._reload(asked)
        if time.monotonic() >= self._retire_at_s:
            self._retire()

    def _look_at_watcher(self) -> None:
        if self._watcher is None:
            if time.monotonic() >= self._watch_at_s:
                self._watcher = self._apart("watch")
            return
        said = self._watcher.said(0)
        if isinstance(said, SourceChanged):
            self._seen = said.seen
            self.begin("the source changed")
        elif isinstance(said, Failed):
            logger.warning("the process that watches the source ended, and begins again in %d s", _AGAIN_S)
            self._watcher.close()
            self._watcher, self._watch_at_s = None, time.monotonic() + _AGAIN_S

    # Reloads

    def _reload(self, number: int) -> None:
        reason = self._control.reason_of(number)
        logger.info("reload %d begins: %s", number, reason)
        self._begin(number, reason)
        try:
            found = self._load()
            if found is None:
                return
            written, snapshot = found
            if written.stale_reason is not None:
                raise DataError(written.stale_reason)
            self._become(written, snapshot)
        except Exception as error:  # whatever it is, the old data is served
            if not isinstance(error, (DataError, OSError)):
                logger.exception("reload %d met a defect of the service", number)
            logger.error("reload %d failed, the data is served as before: %s", number, error)
            self._end("failed", _without_folders(str(error) or repr(error)))
        finally:
            self._done = number
            self._control.forget_reloads(number)
            self._retire()

    def _become(self, written: Written, snapshot: Snapshot) -> None:
        """Have what was loaded served. Raises DataError where a worker cannot open it."""
        self._seen = written.seen
        key = written.path.name
        if key == self._state.current:
            logger.info("reload %d found nothing new", self._running.number)
            self._state = self._state.model_copy(update={"stale_reason": None})
            self._end("unchanged")
            return
        self._take(snapshot)
        self._make_current(snapshot, None)
        self._end("succeeded")
        self._hooks.renewed(snapshot, written.notes)
        self._purge()

    def _take(self, snapshot: Snapshot, *, oldest: bool = False) -> None:
        """Have every worker open a version. Raises DataError where one cannot."""
        key = snapshot.path.name
        held = {name: version for name, version in self._state.held.items() if name != key}
        this = {key: Held(path=str(snapshot.path), made_at=snapshot.created_at)}
        failed = self._switch(held=this | held if oldest else held | this)
        if failed:
            self._switch(held=held)
            raise DataError(f"a worker cannot open version {key}: {failed.get(key, '; '.join(failed.values()))}; reload again")
        self._snapshots[key] = snapshot

    def _make_current(self, snapshot: Snapshot, stale_reason: str | None) -> None:
        took_s = time.monotonic() - self._began_s
        self._switch(current=snapshot.path.name, stale_reason=stale_reason, progress=None, load_s=took_s)

    def _open_other(self, key: str) -> None:
        """A version that another replica made, and that somebody asks for by its fingerprint."""
        if key in self._snapshots:
            return
        try:
            snapshot = self._opened(self._data.snapshot_folder() / key, verify=True)
            LastUse(snapshot.path).note()
            self._take(snapshot, oldest=True)
            logger.info("holding version %s, which lies in the snapshot folder, for requests that pin it", key)
        except DataError as error:
            logger.warning("cannot serve version %s, which lies in the snapshot folder: %s", key, error)
            self._publish(refused=[*self._state.refused, key])

    def _opened(self, path: Path, *, verify: bool) -> Snapshot:
        try:
            return open_snapshot(path, verify=verify)
        except SnapshotInvalid as error:
            raise DataError(f"the snapshot that was loaded cannot be opened: {error}; reload again") from error

    # Versions that go

    def _retire(self) -> None:
        """Drop the versions that nobody needs any more, and their files."""
        self._retire_at_s = time.monotonic() + min(_RETIRE_S, max(1.0, self._retention.for_s / 4))
        older = [key for key in self._state.held if key != self._state.current]
        kept = self._retention.versions - 1
        gone = [key for key in older[: len(older) - kept] if not self._retention.still_used(self._snapshots[key].path)]
        if gone:
            self._drop(gone)
        self._control.forget_workers(self._hooks.workers())
        self._to_remove = {path for path in self._to_remove if not remove_unless_open(path)}
        if self._state.current is not None:
            current = self._snapshots[self._state.current].path
            remove_outdated(current.parent, self._identity, current, self._retention)

    def _purge(self) -> None:
        """Drop what holds something to be forgotten, and remove its files, whoever has them open."""
        if self._forget_list is None or self._state.current is None:
            return
        judge, current = Judge.of(self._data, self._forget_list.read()), self._state.current
        gone = [key for key, snapshot in self._snapshots.items() if key != current and judge.forgotten_in(snapshot)]
        if gone:
            self._drop(gone)
        for key in purge(self._data, self._identity, judge, keep=current):
            logger.info("removed the files of version %s, which held a recording to be forgotten", key)

    def _drop(self, keys: list[str]) -> None:
        """Have every worker let go of them; what has become of the files is seen to as soon as nobody has them open."""
        held = {key: version for key, version in self._state.held.items() if key not in keys}
        current = self._state.current if self._state.current in held else None
        self._switch(held=held, current=current)
        for key in keys:
            path = self._snapshots.pop(key).path
            logger.info("dropped version %s", key)
            if not remove_unless_open(path):
                self._to_remove.add(path)

    # The state

    @property
    def _running(self) -> RunningReload:
        assert self._state.reload is not None  # noqa: S101
        return self._state.reload

    def _begin(self, number: int, reason: str) -> None:
        self._began_s = time.monotonic()
        running = RunningReload(number=number, reason=reason, began_at=_now())
        self._publish(reload=running, progress=Progress(phase="starting"))

    def _end(self, outcome: str, error: str | None = None) -> None:
        last = Reload(**dict(self._running), ended_at=_now(), outcome=outcome, error=error)
        counter = f"num_{outcome}"
        self._publish(reload=None, progress=None, last=last, **{counter: getattr(self._state, counter) + 1})

    def _tell(self, progress: Progress | None) -> None:
        self._publish(progress=progress)

    def _publish(self, **changes: object) -> None:
        self._state = self._state.model_copy(update=changes)
        self._control.publish(self._state)

    def _switch(self, **changes: object) -> dict[str, str]:
        """Change what workers must follow, and wait until all have. Returns why versions could not be opened, by their keys."""
        seq = self._state.seq + 1
        self._publish(seq=seq, **changes)
        failed: dict[str, str] = {}
        while not self._ended.is_set():
            acks = [self._control.ack_of(pid) for pid in self._hooks.workers()]  # again: one that died has a successor
            if acks and all(ack.seq >= seq for ack in acks):
                for ack in acks:
                    failed |= ack.failed
                break
            self._ended.wait(_ACK_POLL_S)
        return failed

    def _apart(self, do: str) -> Apart:
        task = Task(do, self._data, self._settings, show_progress=self._show_progress, seen=self._seen)  # type: ignore[arg-type]
        try:
            return Apart(task)
        except OSError as error:
            raise DataError(f"cannot start a process to load the data: {error.strerror}; free memory or raise ulimit -u") from error


def _without_folders(text: str) -> str:
    """What clients are told: files by their names, and nothing of where they lie on this machine."""
    return _FOLDERS.sub("", text)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
