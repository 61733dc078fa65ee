"""Which version of the data a dataset reads: the one of its first use, until it is told to move to the service's current one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from torch.utils.data import get_worker_info

from ..client import Client
from ..contract.bodies import SplitInfo
from ..errors import CpstreamError, DatasetChanged, ForgottenError, StateMismatch
from .resumable import Resumable

_ACCEPT = "load_state_dict(state, accept_version=True)"


class Versioned(Resumable):
    """What a StreamingEmbeddingsDataset knows of versions. Workers learn by the position that they share whither it has moved."""

    _client: Client

    def __init__(self) -> None:
        super().__init__()
        self._info: SplitInfo | None = None

    @property
    def info(self) -> SplitInfo:
        """The split as the service held it at first use, by whichever worker, or at the last refresh(); other data is refused."""
        if self._info is None:
            with self.forgetting(self._position.fingerprint):
                info = self._pinned(self._position.fingerprint)
                if self._position.fingerprint not in ("", info.fingerprint):  # another worker was faster, and met another version
                    info = self._pinned(self._position.fingerprint)
            self._position.pin(info.fingerprint)
            self._info = info
        return self._info

    def _pinned(self, fingerprint: str | None) -> SplitInfo:
        return self._client.split(self.split, fingerprint=fingerprint or None)

    def refresh(self) -> bool:
        """Move to the version that the service has now, between two epochs. Returns whether that is other data than before.

        What is kept of the old version is freed. Workers follow, persistent ones, too. Where rank and world size are those of
        torch.distributed, all ranks must call it, and all move to the version that rank 0 meets. Raises CpstreamError in mid-epoch:
        the rest of an epoch is of the data with which it began.
        """
        if get_worker_info() is not None:
            raise CpstreamError("refresh() was called in a DataLoader worker; call it in the process of the loop, between epochs")
        if self._is_under_way():
            epoch = self.epoch if self._run is None else self._run.plan.epoch
            raise CpstreamError(
                f"refresh() was called within epoch {epoch}, and the rest of an epoch is of the data with which it began; call it "
                f"between epochs, or leave this one: set_epoch({epoch + 1}), or {_ACCEPT}"
            )
        moved = self._move(self._share.agreed(lambda: self._pinned(None).fingerprint))
        run = self._run
        if moved and run is not None and run.delivered:  # complete: it stays so
            run.plan = replace(run.plan, n=self.info.num_samples, start=0)
            run.delivered = run.plan.num_steps
        elif moved:
            self._run = None
        return moved

    def _move(self, fingerprint: str) -> bool:
        if self._info is not None and fingerprint == self._position.fingerprint:
            return False
        info, before = self._pinned(fingerprint), self._position.fingerprint
        self._position.move(info.fingerprint)
        self._info, self._prepared = info, None
        self.let_go()
        return before not in ("", info.fingerprint)

    def follow(self) -> None:
        """In a worker that lives on: to the version that the process of the loop has moved to."""
        if self._info is not None and self._info.fingerprint != self._position.fingerprint:
            self._info = None
            self.let_go()

    def _is_under_way(self) -> bool:
        """Whether an epoch was begun and is not at its end, or a position within one was loaded."""
        run, sampling = self._run, self.sampling() if self.sampling is not None else None
        if sampling is not None and sampling():
            return True
        if run is None:
            return self._position.read_by_workers or self._position.start > 0
        return not run.finished and (run.delivered > 0 or run.plan.start > 0)

    def load_state_dict(self, state: Mapping[str, Any], *, accept_version: bool = False) -> None:
        """Go on where the state was taken: the next iteration begins there, with any world size, batch size and workers.

        The ones after it begin at the beginning of an epoch, as ever. (A plain DataLoader with workers goes on there each time
        until set_epoch is called.) Raises StateMismatch, naming both values, when the state is of other data, another split,
        seed or shuffle. A dataset that has asked for nothing yet takes the version of the state, as long as the service keeps it.

        accept_version: where that version is no more, go on with the service's current one, at the beginning of the next epoch.
        """
        super().load_state_dict(self._accepted(state) if accept_version else self.met(state))

    def met(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state. Where no version has been met yet, its own is, if the service has it."""
        fingerprint = state.get("fingerprint")
        is_first = self._info is None and not self._position.fingerprint
        if is_first and isinstance(fingerprint, str) and fingerprint and state.get("split") == self.split:
            try:
                with self.forgetting(fingerprint):
                    info = self._pinned(fingerprint)
            except DatasetChanged:
                return state  # to be refused, by both fingerprints
            self._position.pin(info.fingerprint)
            self._info = info
        return state

    def _accepted(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state as it is where its version is there still; else that of the next epoch's beginning, on the current version."""
        fingerprint = self.accept(state)
        return state if fingerprint == state["fingerprint"] else at_next_epoch(state) | {"fingerprint": fingerprint}

    def accept(self, state: Mapping[str, Any]) -> str:
        """The fingerprint with which to go on: the state's where the service has that version still, else the current one's."""
        fingerprint = state.get("fingerprint")
        if not isinstance(fingerprint, str) or "worker" in state:
            raise StateMismatch(
                "accept_version goes with a state of loader(dataset), and this one is of a single worker, or of none"
            )
        if self._position.fingerprint in ("", fingerprint):
            self._move(self._share.agreed(lambda: self._held_or_current(fingerprint)))
        if self.info.fingerprint != fingerprint:
            with suppress(CpstreamError), self.forgetting(fingerprint):  # of which there may be files here
                self._client.check_unchanged(self.info.model_copy(update={"fingerprint": fingerprint}))
        return self.info.fingerprint

    def _held_or_current(self, fingerprint: str) -> str:
        try:
            return self._pinned(fingerprint).fingerprint
        except (DatasetChanged, ForgottenError):
            return self._pinned(None).fingerprint

    @contextmanager
    def forgetting(self, fingerprint: str) -> Iterator[None]:
        """Within: where the service says that the data of this fingerprint is forgotten, nothing of it stays here."""
        try:
            yield
        except ForgottenError:
            self.let_go(forgotten=fingerprint)
            raise

    def let_go(self, forgotten: str = "") -> None:
        """Keep nothing of the version in memory. forgotten: the fingerprint of data of which nothing stays on disk, either."""
        raise NotImplementedError


def at_next_epoch(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state at the beginning of the epoch after the one that it stands in; of its own, where it stands there already."""
    epoch, start = state.get("epoch"), state.get("start")
    if not isinstance(epoch, int) or not isinstance(start, int):
        return dict(state)  # to be refused, by name
    return {**state, "epoch": epoch + (start > 0), "start": 0}
