"""How the keeper of the versions and the workers of a service talk: files in a folder of the service's own, written whole, polled.

    state.json          of the keeper, for all: what to hold and which is current
    worker-<pid>.json   of each worker: how far it has followed
    reload-<number>     somebody asks for a reload; the highest stays, so that numbers only grow
    open-<key>          a worker was asked for a version that lies in the snapshot folder, and is not held
    drop-<key>          a version is to be dropped now, whatever was used of it

Files, and not pipes: a worker that dies in between leaves nothing half said, and the one that takes its place reads where all are.
From inside the service, `ask_reload(reason)` begins a reload and `ask_drop(key)` drops a version at once, in every worker.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .state import Ack, State

_MEMORY = Path("/dev/shm")  # noqa: S108 - mkdtemp makes the folder its user's alone
_STATE, _RELOAD, _OPEN, _DROP = "state.json", "reload-", "open-", "drop-"


class Control:
    """One folder. Can be pickled: workers get it with their settings."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp: tuple[int, ...] | None = None

    @classmethod
    @contextmanager
    def made(cls) -> Iterator["Control"]:
        """In a new folder, which is removed at the end: in memory where there is such a place, which no full disk reaches."""
        place = _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else None
        folder = Path(tempfile.mkdtemp(prefix="cpstream-versions-", dir=place))
        try:
            yield cls(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # For everybody

    def shared_folder(self) -> Path:
        """For what else the processes of a service have in common."""
        folder = self._folder / "shared"
        folder.mkdir(exist_ok=True)
        return folder

    def ask_reload(self, reason: str) -> int:
        """Ask for a reload that begins after now. Returns its number: it is done when State.last.number has come to that."""
        while True:
            number = self.asked() + 1
            with suppress(FileExistsError):
                self._write(f"{_RELOAD}{number:09d}", reason, new=True)
                return number

    def asked(self) -> int:
        """The number of the last reload that was asked for; 0 before the first."""
        return max((int(name.removeprefix(_RELOAD)) for name in self._names(_RELOAD)), default=0)

    def ask_open(self, key: str) -> None:
        self._write(_OPEN + key, "")

    def ask_drop(self, key: str) -> None:
        """Have every worker drop this version at once. No-op for one that is not held; the current one may be dropped, too."""
        self._write(_DROP + key, "")

    # For workers

    def changed(self) -> State | None:
        """The state, if it is another one than at the last call."""
        path = self._folder / _STATE
        try:
            status = path.stat()
            stamp = status.st_ino, status.st_mtime_ns, status.st_size
            if stamp == self._stamp:
                return None
            state = State.model_validate_json(path.read_bytes())
        except FileNotFoundError:  # before the first
            return None
        self._stamp = stamp
        return state

    def acknowledge(self, ack: Ack) -> None:
        self._write(f"worker-{os.getpid()}.json", ack.model_dump_json())

    # For the keeper

    def publish(self, state: State) -> None:
        self._write(_STATE, state.model_dump_json())

    def ack_of(self, pid: int) -> Ack:
        """How far a worker is; of one that has said nothing yet, that."""
        try:
            return Ack.model_validate_json((self._folder / f"worker-{pid}.json").read_bytes())
        except FileNotFoundError:
            return Ack(seq=-1)

    def reason_of(self, number: int) -> str:
        return (self._folder / f"{_RELOAD}{number:09d}").read_text()

    def forget_reloads(self, before: int) -> None:
        for name in self._names(_RELOAD):
            if int(name.removeprefix(_RELOAD)) < before:
                (self._folder / name).unlink(missing_ok=True)

    def forget_workers(self, alive: Iterable[int]) -> None:
        kept = {f"worker-{pid}.json" for pid in alive}
        for name in self._names("worker-"):
            if name not in kept:
                (self._folder / name).unlink(missing_ok=True)

    def to_open(self) -> list[str]:
        """Keys that were asked for since the last call."""
        return self._taken(_OPEN)

    def to_drop(self) -> list[str]:
        return self._taken(_DROP)

    def _taken(self, prefix: str) -> list[str]:
        names = self._names(prefix)
        for name in names:
            (self._folder / name).unlink(missing_ok=True)
        return [name.removeprefix(prefix) for name in names]

    def _names(self, prefix: str) -> list[str]:
        return [name for name in os.listdir(self._folder) if name.startswith(prefix)]

    def _write(self, name: str, text: str, *, new: bool = False) -> None:
        """A whole file, at once. new: raises FileExistsError where there is one of this name."""
        temporary = self._folder / f".{secrets.token_hex(8)}"
        temporary.write_text(text)
        try:
            if new:
                os.link(temporary, self._folder / name)
            else:
                temporary.replace(self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)
