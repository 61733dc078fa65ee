"""Where the iteration over a dataset stands: epochs are chosen or advanced, states taken and loaded."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from torch.utils.data import get_worker_info

from ..contract.bodies import SplitInfo
from ..contract.plan import Indices, Plan
from ..contract.wire import BatchQuery
from ..epochs.position import Identity, Position, Run
from ..errors import CpstreamError, StateMismatch
from .guard import caller, is_own_counting, refuse_replacing, refuse_sharding, refuse_state_ahead, warn_of_repetition
from .share import Share
from .states import check_worker_state, state_of, worker_state_of


class Resumable:
    """What a StreamingEmbeddingsDataset knows of epochs, steps and states, without the batches."""

    split: str
    shuffle: bool | Literal["blocks"]
    _share: Share

    def __init__(self) -> None:
        self._position = Position()
        self._run: Run | None = None
        self._prepared: Run | None = None
        self._worker_resume: Mapping[str, Any] | None = None
        self._warned = False
        self.taker_ahead = ""  # who takes batches of a Loader before the loop asks for them
        self.has_sampler = ""  # that of a Loader made of it
        self.sampled_by = ""  # the sampler that chose the samples of the last iteration
        self.sampling: Callable[[], Callable[[], bool] | None] | None = None  # whether the Loader with a sampler is in mid-epoch
        self._chosen = False  # by the caller, and not by a loader's own counting

    @property
    def info(self) -> SplitInfo:
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of: what set_epoch or load_state_dict set, or where a Loader has come to."""
        return self._next()[0]

    def _next(self) -> tuple[int, int]:
        """Epoch and start of the next iteration. A position is iterated from once; the next one begins at an epoch's beginning."""
        run = self._run
        if run is not None and run.advances and run.finished and not self._position.announced:
            return run.resume_at()
        return self._position.epoch, 0 if self._begun() else self._position.start

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, as DistributedSampler.set_epoch.

        It begins at the epoch's beginning; but a position that load_state_dict set in this very epoch stays. Where a framework
        calls it, see guard.py.
        """
        if operator.index(epoch) < 0:
            raise ValueError(f"epoch is {epoch}; it must be 0 or more")
        who = caller()
        refuse_sharding(self, who)
        counting = is_own_counting(self, who)
        if counting and self._chosen and not self._begun():
            refuse_replacing(who, self._next(), epoch, shuffled=bool(self.shuffle))
        self._chosen = not counting
        if epoch != self.epoch or self._begun():
            self._position.set(epoch, 0)
            self._run = None
        self._position.announce()

    def __len__(self) -> int:
        """Steps of every rank in a whole epoch, those before a resumed position included."""
        return self._plan(self.epoch, 0).num_steps

    @property
    def steps_left(self) -> int:
        """Steps from where the loop is to the end of the epoch; before it begins or after it ended, those of the next iteration."""
        if self._run is not None and not self._run.finished:
            return self._run.plan.num_steps - self._run.delivered
        return self._plan(*self._next()).num_steps

    def begin_run(self, *, counted_by_loader: bool = False, advances: bool = False) -> Run:
        """Begin an iteration: from the position that was set, but if that has been iterated from, from an epoch's beginning."""
        self._position.set(*self._next())
        self.sampled_by = ""
        plan = self._plan(self._position.epoch, self._position.start)
        self._run = Run(plan, counted_by_loader=counted_by_loader, advances=advances)
        return self._run

    def prepare_run(self, **options: bool) -> Run:
        """Begin an iteration that the next iterator of this process makes, and that a Loader speaks for."""
        self._prepared = self.begin_run(**options)
        return self._prepared

    def _warn_of_repetition(self) -> None:
        """Once, where a whole shuffled epoch is about to be repeated and nobody has ever chosen an epoch."""
        run = self._run
        if run is None or self._warned or self._position.announced or not self.shuffle or not (run.finished and run.delivered):
            return
        if replace(run.plan, start=0) == self._plan(*self._next()):
            self._warned = True
            warn_of_repetition(self)

    @property
    def query(self) -> BatchQuery:
        """What a batch is like: its size, type and columns."""
        return self._share.query

    def ranks(self) -> tuple[int, int]:
        """Rank and world size of this process, at this moment."""
        return self._share.ranks()

    def indices(self, step: int) -> Indices:
        """Which samples a batch of this rank holds. (B,) int64. step: counted from where the iteration began, or begins next.

        Raises IndexError for a step that it does not have.
        """
        plan = self._plan(*self._next()) if self._run is None else self._run.plan
        if not 0 <= step < plan.num_steps:
            raise IndexError(f"step is {step}; the iteration has {plan.num_steps} steps, from 0 on")
        return plan.batch(plan.order(), step).copy()

    def _begun(self) -> bool:
        """Whether batches have been delivered from the position since it was set."""
        return self._position.read_by_workers if self._run is None else self._run.delivered > 0

    def _plan(self, epoch: int, start: int) -> Plan:
        return self._share.plan(self.info.num_samples, epoch, start)

    def state_dict(self) -> dict[str, Any]:
        """Where the training loop is, as small JSON. Counts batches that it received, never prefetched ones.

        Raises CpstreamError where that cannot be known: in a plain DataLoader with workers. Use `loader`.
        """
        run = self._run
        if self.sampled_by:
            raise CpstreamError(f"the last batches were chosen by {self.sampled_by}: use state_dict() of the loader that has it")
        if get_worker_info() is not None:
            where = (self.epoch, self._position.start, 0) if run is None else (run.plan.epoch, run.plan.start, run.delivered)
            return worker_state_of(self._identity(), self._share, *where)
        if self._position.read_by_workers and not (run is not None and run.counted_by_loader):
            raise CpstreamError(
                "state_dict() cannot know which of the batches that DataLoader workers fetched ahead have reached the loop; "
                "make the loader by cpstream_client.torch.loader(dataset, num_workers=...) and use its state_dict()"
            )
        refuse_state_ahead(self, self.taker_ahead)
        at = (self._position.epoch, self._position.start) if run is None else run.resume_at()
        return state_of(self._identity(), self._share, *at)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the state was taken: the next iteration begins there, with any world size, batch size and workers.

        The ones after it begin at the beginning of an epoch, as ever. (A plain DataLoader with workers goes on there each time
        until set_epoch is called.) Raises StateMismatch, naming both values, when the state is of other data, another split,
        seed or shuffle.
        """
        self._identity().check(state)
        if "worker" in state:
            check_worker_state(state, self._share)
            self._worker_resume = state
            return
        if state["start"] > self.info.num_samples:
            raise StateMismatch(f"the state's start is {state['start']}; the split has {self.info.num_samples} samples")
        self._position.set(state["epoch"], state["start"])
        self._run = None
        self._chosen = True

    def _identity(self) -> Identity:
        return Identity(self.info.fingerprint, self.split, self._share.query.seed, self.shuffle)
