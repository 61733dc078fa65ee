"""What the service logs, and how it comes out: whoever logs waits for no reader of standard error, and for no disk."""

import logging
import logging.config
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from .settings import ServeSettings
from .text import plain

MAX_WAITING_BYTES = 4 * 1024**2
"""Of lines that standard error has not taken yet. What exceeds them is lost, until half of them are written."""
FLUSH_S = 2.0
"""So long the end of the process waits for standard error to take anything at all."""
_TOGETHER_S = 0.02


@contextmanager
def logging_to_stderr(settings: ServeSettings) -> Iterator[None]:
    """Log to standard error in this process, Python's warnings included. At the end all is written, or has had its time."""
    logging.config.dictConfig(logging_config(settings))
    logging.captureWarnings(True)
    try:
        yield
    finally:
        for handler in logging.getLogger().handlers:
            handler.flush()


def logging_config(settings: ServeSettings) -> dict[str, Any]:
    """For logging.config.dictConfig, in this process and, through uvicorn, in each worker."""
    level = settings.log_level.upper()
    formatters = {
        "text": {"()": OneLine, "fmt": "%(asctime)s %(levelname)-7s %(message)s"},
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s %(process)d",
            "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger", "process": "pid"},
            "datefmt": "%Y-%m-%dT%H:%M:%S%z",
        },
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": formatters,
        "handlers": {"stderr": {"()": StandardError, "formatter": settings.log_format}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        # uvicorn's own lines about starting and stopping only repeat what the service says itself
        "loggers": {"cpstream": {"level": level}, "uvicorn": {"level": level if level == "DEBUG" else "WARNING"}},
    }


class OneLine(logging.Formatter):
    """Text of others, such as names of splits, can neither start a line of its own nor command a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return plain(super().formatMessage(record))


class _Line(NamedTuple):
    """A line that waits. num: how many are lost with it, which is more than one where it tells of lost ones."""

    data: bytes
    num: int = 1


class StandardError(logging.Handler):
    """Lines to a descriptor, by a thread of its own: a pipe that nobody reads, or a slow disk, would else stop the event loop.

    What it cannot take is lost; how many lines, and why, is said as soon as there is room. Lines of a busy time are written some at
    once, which costs less than a write for each, but never more than a pipe takes in one piece, since workers share it.
    """

    def __init__(self, descriptor: int = 2) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._lines: deque[_Line] = deque()
        self._waiting_bytes = 0  # those that are being written included
        self._lost, self._why, self._is_full, self._is_torn, self._is_closed = 0, "", False, False, False
        self._gave_up = False  # of flushing: only once is so long waited for nothing
        self._writer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        line = _Line(self._data(record))
        if os.getpid() != self._pid:  # a forked child has no writer, and ends without a flush
            self._written([line])
            return
        with self._changed:
            if not self._has_room(line):
                self._lost, self._why = self._lost + 1, "standard error was not read in time"
                return
            self._say_what_is_lost()
            self._append(line)

    def flush(self) -> None:
        """Wait until all is written, for as long as standard error takes something every now and then."""
        with self._changed:
            while self._waiting_bytes and not self._gave_up and os.getpid() == self._pid:
                before = self._waiting_bytes
                self._changed.wait(FLUSH_S)
                self._gave_up = self._waiting_bytes == before

    def close(self) -> None:
        with self._changed:
            self._is_closed = True  # once all is written
            self._changed.notify_all()
        super().close()

    def _data(self, record: logging.LogRecord) -> bytes:
        try:
            text = self.format(record)
        except Exception as error:  # a line must not cost the request that it tells of
            text = f"cannot log {plain(str(record.msg))}: {plain(repr(error))}"
        return text.encode(self._encoding, "backslashreplace") + b"\n"

    def _has_room(self, line: _Line) -> bool:
        self._is_full = self._waiting_bytes + len(line.data) > (MAX_WAITING_BYTES / 2 if self._is_full else MAX_WAITING_BYTES)
        return not self._is_full

    def _append(self, line: _Line) -> None:
        self._lines.append(line)
        self._waiting_bytes += len(line.data)
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_lines, name="cpstream-log", daemon=True)
            self._writer.start()
        elif len(self._lines) == 1:
            self._changed.notify_all()

    def _say_what_is_lost(self) -> None:
        if self._lost:
            text = f"{self._lost} log line{'s' * (self._lost > 1)} lost: {self._why}"
            record = logging.makeLogRecord({"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": text})
            num, self._lost = self._lost, 0
            self._append(_Line(self._data(record), num))

    # The writer's thread

    def _write_lines(self) -> None:
        while piece := self._next_piece():
            error = self._written(piece)
            with self._changed:
                self._waiting_bytes -= sum(len(line.data) for line in piece)
                if error is not None:
                    self._lost, self._why = self._lost + sum(line.num for line in piece), error
                elif not self._lines:
                    self._say_what_is_lost()
                self._changed.notify_all()
                is_idle = not self._lines and not self._is_closed
            if is_idle:
                time.sleep(_TOGETHER_S)

    def _next_piece(self) -> list[_Line]:
        """Whole lines, as many as a pipe takes at once; none at the end."""
        piece: list[_Line] = []
        room = select.PIPE_BUF
        with self._changed:
            while not self._lines and not self._is_closed:
                self._changed.wait()
            while self._lines and (not piece or len(self._lines[0].data) <= room):
                room -= len(self._lines[0].data)
                piece.append(self._lines.popleft())
        return piece

    def _written(self, piece: list[_Line]) -> str | None:
        """Write them. Returns why that cannot be, or None."""
        data = b"\n" * self._is_torn + b"".join(line.data for line in piece)  # behind half a line, begin another
        at = 0
        while at < len(data):
            try:
                at += os.write(self._descriptor, data[at:])
            except BlockingIOError:  # somebody has set the pipe so, for all that share it
                select.select([], [self._descriptor], [])
            except OSError as error:
                self._is_torn = data[at - 1 : at] != b"\n" if at else self._is_torn
                return error.strerror or str(error)
        self._is_torn = False
        return None
