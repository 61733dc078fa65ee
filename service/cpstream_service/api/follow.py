"""A worker follows the keeper of the versions: it opens, makes current and drops what the state in the control folder says."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from anyio import to_thread

from ..settings import ServeSettings
from ..snapshot.shelf import Shelf
from ..snapshot.store import SnapshotInvalid, open_snapshot
from ..versions.control import Control
from ..versions.state import Ack, Held, State
from .looking import looking
from .versions import Version, Versions

logger = logging.getLogger("cpstream.service")

_POLL_S, _POLL_LOADING_S = 0.1, 0.02


@dataclass
class Follower:
    """state: as it was last told; the routes read it, and observability may."""

    versions: Versions
    settings: ServeSettings
    control: Control
    state: State = field(default_factory=State)
    _shelf: Shelf | None = None
    _unsaid: Ack | None = None

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Within, this worker is at most a tenth of a second behind. A worker that takes another's place catches up first."""
        self.versions.progress, self.versions.open_other = self._progress, self._open_other
        await self._look()

        def every_s() -> float:
            return _POLL_S if self.versions.is_ready else _POLL_LOADING_S

        async with looking(self._look, every_s, "cannot follow the state of the versions"):
            yield

    async def _look(self) -> None:
        state = self.control.changed()
        if state is None:
            if self._unsaid is not None:
                self._acknowledge(self._unsaid)
            return
        is_new, self.state = state.seq != self.state.seq, state
        self.versions.stale_reason = state.stale_reason
        if is_new:
            failed = {}
            for key, held in state.held.items():
                if key not in self.versions.held:
                    why = await self._open(held)
                    if why is not None:
                        failed[key] = why
            self._switch(state)
            self._acknowledge(Ack(seq=state.seq, failed=failed))

    def _acknowledge(self, ack: Ack) -> None:
        """Now, or, where there is no room to say it, at the next look: what is served does not wait for it."""
        try:
            self.control.acknowledge(ack)
        except OSError as error:
            if self._unsaid is None:
                logger.warning("cannot say which versions this worker holds, and tries again: %s", error)
            self._unsaid = ack
        else:
            self._unsaid = None

    async def _open(self, held: Held) -> str | None:
        """Returns why it cannot be opened, or None."""
        try:
            version = await to_thread.run_sync(_opened, Path(held.path), self.settings)
        except (SnapshotInvalid, OSError) as error:
            return str(error)
        self.versions.open(version)
        return None

    def _switch(self, state: State) -> None:
        for key in self.versions.held.keys() - state.held.keys():
            self.versions.drop(key)
        if state.current is not None and state.current in self.versions.held:
            self.versions.make_current(state.current)
            path = self.versions.current.snapshot.path
            if self._shelf is None or self._shelf.snapshot != path:
                with suppress(SnapshotInvalid):
                    self._shelf = Shelf(path)

    def _progress(self) -> str:
        progress = self.state.progress
        if progress is None:
            return "the data is being loaded"
        rows = "" if progress.rows is None else f", {progress.rows:,} rows" + (f" of {progress.total:,}" if progress.total else "")
        return f"the data is being loaded: {progress.phase}{rows}"

    def _open_other(self, split: str, fingerprint: str) -> bool:
        """Whether a snapshot with this lies in the folder: then it is held soon."""
        key = None if self._shelf is None else self._shelf.find(split, fingerprint)
        if key is None or key in self.state.refused:
            return False
        self.control.ask_open(key)
        return True


def _opened(path: Path, settings: ServeSettings) -> Version:
    return Version.of(open_snapshot(path, verify=False), settings)
