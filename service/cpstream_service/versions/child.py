"""The process that loads data, or watches its source, beside a service that goes on answering. apart.py starts it."""

import contextlib
import logging
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from ..errors import DataError
from ..logs import logging_to_stderr
from ..progress import listen
from ..setting_errors import SettingsError
from ..snapshot.inputs import seen_of
from ..snapshot.last_use import Retention
from ..snapshot.store import Snapshot
from .messages import Failed, SourceChanged, Task, Told, Written

logger = logging.getLogger("cpstream.service")


def main(descriptor: int) -> NoReturn:
    """Do the task that comes over the connection, and end. It ends, too, when the other side has gone."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # those of a terminal reach all its processes: the service ends this one
    connection: Connection[Any, Any] = Connection(descriptor)
    task: Task = connection.recv()
    threading.Thread(target=_end_with, args=(connection,), name="service", daemon=True).start()
    with logging_to_stderr(task.settings), contextlib.suppress(BrokenPipeError):
        if task.do == "load":
            said, _held = _loaded(task, connection)  # _held: so that nobody removes it before the service has it open, and goes
            connection.send(said)
            threading.Event().wait()
        else:
            _watch(task, connection)
    os._exit(0)  # not by giving back millions of objects one by one


def _end_with(connection: "Connection[Any, Any]") -> None:
    with contextlib.suppress(EOFError, OSError):
        connection.recv()  # nothing more is sent: this returns when there is nobody any more
    os._exit(1)


def _loaded(task: Task, connection: "Connection[Any, Any]") -> tuple[Written | Failed, Snapshot | None]:
    from ..snapshot.load import load  # with all that reads sources

    listen(lambda phase, rows, total: connection.send(Told(phase, rows, total)))
    retention = Retention(task.settings.keep_versions, task.settings.keep_for_s)
    try:
        seen = seen_of(task.data) if task.settings.watch else ""
        loaded = load(task.data, progress=task.show_progress, retention=retention)
    except (DataError, SettingsError, OSError) as error:
        return Failed(error), None
    except Exception as error:
        logger.exception("loading the data failed")
        return Failed(DataError(f"loading failed by a defect of the service ({error!r:.200}); the log has its cause")), None
    return Written(loaded.snapshot.path, loaded.stale_reason, loaded.notes, seen), loaded.snapshot


def _watch(task: Task, connection: "Connection[Any, Any]") -> None:
    told = seen = task.seen
    why = ""
    while True:
        time.sleep(task.settings.watch_interval_s)
        try:
            before, seen = seen, seen_of(task.data)
        except (DataError, OSError) as error:
            if str(error) != why:
                logger.warning("cannot see whether the data has changed: %s", error)
            why = str(error)
            continue
        why = ""
        if seen != told and seen == before:
            told = seen
            connection.send(SourceChanged(seen))
