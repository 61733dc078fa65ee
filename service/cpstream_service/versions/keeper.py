"""The one of a service that loads its data: at the start, when it is asked to, when the source changes. A thread beside the server.

A load runs in a process of its own, and gives a snapshot. Every worker opens it, and only then is it made current in all of them
(roster.py). What goes wrong before leaves the old data current.

    keeper.begin("why")     begin a reload from inside the service's first process; control.ask_reload from a worker
    control.ask_drop(key)   drop a version at once, in every worker, whatever was used of it
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cpstream_client.contract.versions import Progress, Reload, RunningReload

from ..errors import DataError
from ..settings import DataSettings, ServeSettings
from ..snapshot.forgotten import ListWatch
from ..snapshot.inputs import identity_of, seen_of
from ..snapshot.last_use import Retention
from ..snapshot.load import find_current
from ..snapshot.store import Snapshot
from .apart import Apart
from .control import Control
from .messages import Failed, SourceChanged, Task, Told, Written
from .roster import Roster, opened

logger = logging.getLogger("cpstream.service")

POLL_S = 0.1
_AGAIN_S = 10.0
_CLOSE_S = 2.0
"""Time to end for the thread, which may be hashing gigabytes."""
_FOLDERS = re.compile(r"(?<![\w:/.])(?:/[^\s/:;,'\"]+)+/")
"""The folders of an absolute path; not a URL's."""
START = "the service starts"
_UNABLE = "the data is served as before, and cannot be reloaded now"


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
        self._loader: Apart | None = None
        self._watcher: Apart | None = None
        self._began_s = self._watch_at_s = 0.0
        self._done = 0
        self._seen = ""
        self._ended = threading.Event()
        self._forget_list = None if data.forget_list is None else ListWatch(data)
        self._roster = Roster(data, control, self._retention, hooks.workers, self._ended)

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
        self._roster.identity = identity_of(self._data)
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
                    return said, opened(said.path, verify=False)  # while the process has it open, so that nobody removes it
                finally:
                    self._loader.close()
                    self._loader = None
        return None

    def _look_on(self) -> None:
        """What is served goes on, whatever happens here."""
        try:
            self._look()
        except Exception as error:
            if isinstance(error, OSError):  # such as a full disk, or no more files
                logger.error("%s, tried again in %d s: %s", _UNABLE, _AGAIN_S, error)
            else:
                logger.exception("%s, tried again in %d s", _UNABLE, _AGAIN_S)
            self._ended.wait(_AGAIN_S)

    def _look(self) -> None:
        """Do what is to be done now."""
        self._roster.drop(self._control.to_drop())
        for key in self._control.to_open():
            self._roster.open_other(key)
        if self._settings.watch:
            self._look_at_watcher()
        current = self._roster.current
        made_by = "" if current is None else current.forgotten
        if self._forget_list is not None and self._forget_list.wants_reload(made_by):
            self.begin("the forget list changed")
        asked = self._control.asked()
        if asked > self._done:
            self._reload(asked)
        self._roster.retire_in_time()

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
            self._roster.retire()

    def _become(self, written: Written, snapshot: Snapshot) -> None:
        """Have what was loaded served. Raises DataError where a worker cannot open it."""
        self._seen = written.seen
        if written.path.name == self._roster.state.current:
            logger.info("reload %d found nothing new", self._running.number)
            self._end("unchanged", stale_reason=None)
            return
        self._make_current(snapshot, None)
        self._end("succeeded")
        self._hooks.renewed(snapshot, written.notes)
        self._purge()

    # The state

    def _make_current(self, snapshot: Snapshot, stale_reason: str | None) -> None:
        self._roster.take(snapshot)
        self._roster.make_current(snapshot, stale_reason, time.monotonic() - self._began_s)

    def _purge(self) -> None:
        if self._forget_list is not None:
            self._roster.purge(self._forget_list.read())

    @property
    def _running(self) -> RunningReload:
        assert self._roster.state.reload is not None  # noqa: S101
        return self._roster.state.reload

    def _begin(self, number: int, reason: str) -> None:
        self._began_s = time.monotonic()
        running = RunningReload(number=number, reason=reason, began_at=_now())
        self._roster.publish(reload=running, progress=Progress(phase="starting"))

    def _end(self, outcome: str, error: str | None = None, **changes: object) -> None:
        last = Reload(**dict(self._running), ended_at=_now(), outcome=outcome, error=error)
        counter = f"num_{outcome}"
        changes[counter] = getattr(self._roster.state, counter) + 1
        self._roster.publish(reload=None, progress=None, last=last, **changes)

    def _tell(self, progress: Progress | None) -> None:
        self._roster.publish(progress=progress)

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
