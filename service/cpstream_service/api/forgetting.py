"""What a worker does when the forget list changes: no byte of a listed recording leaves it from then on.

The list is looked at twice a second. Splits that hold a listed recording are refused, replies of them on their way are cut, kept
predictions of them are deleted, and it is written down for the replicas that share the snapshots. That the data is loaded anew is
the keeper's affair.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, Protocol
from weakref import WeakSet

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..align.forget import NOTHING
from ..errors import DataError
from ..settings import DataSettings
from ..snapshot.forgotten import FILE, Judge, remember, remembered, stamp_of
from ..snapshot.store import Snapshot
from ..statistics.predictions.store import Runs
from .looking import looking
from .versions import Versions

logger = logging.getLogger("cpstream.service")

POLL_S = 0.5
SENDER = "sender"
"""Where a request's state has a weak reference to its Sender, if the server is ours."""
_NEVER_CUT = frozenset({"/livez", "/readyz", "/metrics"})


class Sender(Protocol):
    """A connection. scope: of its last request; is_sending: whether some of a reply may still be on its way to the other end."""

    scope: Scope

    def is_sending(self) -> bool: ...
    def reset(self) -> None: ...


class Forgetting:
    """One a worker. In `watching` it follows the list; all else is called in the event loop."""

    def __init__(self, settings: DataSettings) -> None:
        self._settings = settings
        self._list, self._written = settings.forget_list, settings.snapshot_folder() / FILE
        self._stamps: tuple[Any, Any] = (None, None)
        self._judge = Judge.of(settings, NOTHING)
        self._versions: Versions | None = None
        self._runs: Runs | None = None
        self._runs_are_due = False
        self._senders: WeakSet[Sender] = WeakSet()

    @asynccontextmanager
    async def watching(self, versions: Versions, runs: Runs | None) -> AsyncIterator[None]:
        """Within, what versions hold is judged: what is opened at once, and all of it whenever the list changes.

        runs: those that are kept, or None.
        """
        self._versions, self._runs = versions, runs
        versions.judge = self._on_open
        await asyncio.to_thread(import_module, "pyarrow.compute")  # by which paths are found: not when there is no time to lose
        await self._look()
        async with looking(self._look, lambda: POLL_S, "looking at the forget list failed; it is looked at again"):
            yield

    def sends(self, scope: Scope) -> None:
        """A request has come, whose reply may have to be cut."""
        find = scope["state"].get(SENDER)
        sender = find() if find is not None else None
        if sender is not None:
            self._senders.add(sender)

    async def _look(self) -> None:
        stamps = await asyncio.to_thread(lambda: (stamp_of(self._list), stamp_of(self._written)))
        if stamps == self._stamps:
            await self._forget_runs()
            return
        try:
            self._judge = await asyncio.to_thread(Judge.of, self._settings)
            self._stamps, self._runs_are_due = stamps, True
        except DataError:  # said by the keeper; the list that was read before goes on
            pass
        assert self._versions is not None  # noqa: S101
        snapshots = [version.snapshot for version in self._versions.held.values()]
        found = await asyncio.to_thread(self._found, snapshots)
        self._forget(found, snapshots)
        await asyncio.to_thread(remember, self._settings.snapshot_folder(), found)
        await self._forget_runs()

    async def _forget_runs(self) -> None:
        """Delete what was predicted of splits that are forgotten: since the list changed, or since one of them was opened."""
        if self._runs is None or not self._runs_are_due:
            return
        assert self._versions is not None  # noqa: S101
        self._runs_are_due = False
        is_listed = self._versions.is_listed = self._judge.listed(version.snapshot for version in self._versions.held.values())
        try:
            count = await asyncio.to_thread(self._runs.forget, self._versions.forgotten, is_listed)
        except OSError as error:
            logger.error("cannot delete the predictions of what is to be forgotten: %s; delete them by hand", error)
            return
        if count:
            logger.warning("forgetting: %d runs of predictions were deleted", count)

    def _found(self, snapshots: Collection[Snapshot]) -> set[str]:
        return remembered(self._settings.snapshot_folder()).union(*map(self._judge.forgotten_in, snapshots))

    def _on_open(self, snapshot: Snapshot) -> None:
        self._runs_are_due = True
        self._forget(self._judge.forgotten_in(snapshot), [snapshot])

    def _forget(self, found: set[str], snapshots: Collection[Snapshot]) -> None:
        assert self._versions is not None  # noqa: S101
        clean = {split.fingerprint for each in snapshots if self._judge.trusts(each) for split in each.splits.values()}
        self._versions.restore(clean)
        new = self._versions.forget(found - clean)
        if new:
            cut = self._cut(new)
            logger.warning(
                "forgetting: %d splits are served no more, %d replies were cut (%s)", len(new), cut, ", ".join(sorted(new))
            )

    def _cut(self, fingerprints: Collection[str]) -> int:
        """By a reset, so that what the kernel still holds of a reply does not leave either. Replies of what is kept go on."""
        pins = [f"fingerprint={fingerprint}".encode() for fingerprint in fingerprints]
        count = 0
        for sender in list(self._senders):
            query = sender.scope.get("query_string", b"")
            concerned = any(pin in query for pin in pins) or b"fingerprint=" not in query
            if concerned and sender.scope.get("path") not in _NEVER_CUT and sender.is_sending():
                sender.reset()
                count += 1
        return count


class Forgetful:
    """ASGI middleware where a list is configured: replies are not to be stored, and their connections can be cut."""

    def __init__(self, app: ASGIApp, forgetting: Forgetting) -> None:
        self.app, self._forgetting = app, forgetting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self._forgetting.sends(scope)

        async def send_unstored(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                transform = ", no-transform" if "no-transform" in headers.get("cache-control", "") else ""
                headers["Cache-Control"] = f"no-store{transform}"
            await send(message)

        await self.app(scope, receive, send_unstored)
