"""SampledLoader: the batches that a sampler draws, streamed, and resumed where the loop was."""

import operator
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakMethod

import numpy as np
import torch
from torch.utils.data import default_convert

from ..contract.plan import Indices
from ..epochs.position import check_equal
from ..errors import StateMismatch
from ..stream.course import row_bytes
from .device import to_device
from .drawn import Drawn, digest_of
from .draws import Draws, name_of
from .guard import prefetcher, refuse_resuming, refuse_saving, refuse_state_ahead, warn_of_epoch
from .items import Item, cut_at
from .loader import Loader
from .sampler_state import SamplerState, same

MAX_ROWS_AHEAD = 32_768
"""Samples drawn ahead at most, where `ahead` is not given: each is 8 bytes of a state that holds them."""


class SampledLoader(Loader[Item]):
    """A Loader whose batches a sampler draws, in the process and the thread of the loop. Made by `loader(dataset, sampler=...)`."""

    def use(self, draws: Draws, ahead: int | None) -> None:
        """Before anything else. ahead: batches drawn before they are needed."""
        self._draws, self._ahead = draws, ahead
        self._sampler_state = SamplerState(draws.sampler)
        self._name = self.dataset.has_sampler = name_of(draws.sampler)
        self._run: Drawn | None = None
        self.dataset.sampling = WeakMethod(self._is_under_way)
        self._resume: Mapping[str, Any] | None = None
        self._prefetcher = ""  # what takes a batch before the loop asks for it
        self._told = self._sampler_state.epoch  # what the sampler's own epoch was when we last looked
        self._epoch, self._announced, self._has_run = self._told or 0, False, False

    # Epochs and lengths

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of: that of set_epoch, here or of the sampler, or the one behind a complete pass."""
        if self._resume is not None:
            return int(self._resume["epoch"]) + int(self._resume.get("is_left", False))
        told = self._sampler_state.epoch
        if told is not None and told != self._told:
            return told
        advances = self._run is not None and self._run.finished and self.advance and not self._announced
        return self._epoch + 1 if advances else self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, and tell the sampler, if it has a set_epoch.

        From then on the epoch is the caller's affair. A position that load_state_dict set in this very epoch stays.
        """
        if operator.index(epoch) < 0:
            raise ValueError(f"epoch is {epoch}; it must be 0 or more")
        is_next = epoch == self.epoch or (self._has_run and epoch == self._epoch + 1)
        if not is_next and not self._sampler_state.follows_epochs:
            warn_of_epoch(epoch, self._name)
        if self._resume is not None and self.epoch != epoch:
            self._resume = None
        self._announced = True
        if self._run is not None and (self._run.finished or self._run.epoch != epoch):
            self._run = None
        self._tell(epoch)

    def _is_under_way(self) -> bool:
        if self._run is None:
            return self._resume is not None and bool(self._resume["batches"])
        return self._run.delivered > 0 and not self._run.finished

    def _tell(self, epoch: int) -> None:
        self._epoch = epoch
        if self._announced or self._told is not None:  # else it may have been told by someone whom we cannot see
            self._sampler_state.set_epoch(epoch)
        self._told = self._sampler_state.epoch

    def __len__(self) -> int:
        """Steps of an epoch, as a DataLoader with this sampler has. Raises TypeError where the sampler has no length."""
        return len(self._draws)

    @property
    def steps_left(self) -> int:
        """Steps from where the loop is to the end of the epoch; before it begins or after it ended, those of the next iteration."""
        run = self._run
        done = run.delivered if run is not None and not run.finished else 0
        return len(self) - (int(self._resume["batches"]) if self._resume is not None else done)

    def indices(self, step: int) -> Indices:
        """Which samples a batch holds. (B,) int64. step: counted from where the iteration began; the last 8 million are known.

        Raises IndexError for a step that is not.
        """
        run = self._run
        if run is None:
            raise IndexError(f"step is {step}; {self._name} draws when the iteration begins")
        return run.indices(step)

    # An iteration

    def _iterate(self) -> Iterator[Item]:
        self._prefetcher = "" if self._has_length else prefetcher()
        refuse_resuming(self._prefetcher if self._resume is not None else "", self._name)
        run = self._run = self._begin()
        items = self._items(run)
        moved: Iterator[Any] = items
        if self.device is not None and self._ahead == 0:  # nothing may be drawn while the loop computes
            moved = (next(iter(to_device([item], self.device))) for item in items)
        elif self.device is not None:
            moved = to_device(items, self.device)
        convert = None if self.collate_fn is default_convert else self.collate_fn
        for item in self.dataset.tally.timed(moved):
            run.deliver()
            yield item if convert is None else convert(item)
            del item
        self._prefetcher = ""
        self._draws.raise_error()

    @property
    def _has_length(self) -> bool:
        try:
            len(self)
        except TypeError:
            return False
        return True

    def _items(self, run: Drawn) -> Iterator[Item]:
        dataset, nothing = self.dataset, iter(())
        chosen = dataset.chosen(self._name)
        chosen.put(list(run.waiting))
        count, rows = len(run.waiting), sum(map(len, run.waiting))  # drawn, and not yielded here
        pieces: Iterator[tuple[int, Item]] = nothing
        try:
            while True:
                if not run.is_drawn and self._is_low(count, rows):
                    drawn = self._draw(run, count, rows)
                    chosen.put(drawn)
                    count, rows = count + len(drawn), rows + sum(map(len, drawn))
                if not count:
                    chosen.finish()
                    return
                size, item = next(pieces, (0, None))
                if item is None:
                    pieces = nothing  # it keeps the last item, whose memory could be used again
                    record, sizes = chosen.get()
                    pieces = zip(sizes, cut_at(record, dataset.columns, sizes), strict=True)
                    del record
                    size, item = next(pieces)
                count, rows = count - 1, rows - size
                yield item
                del item
        finally:
            chosen.close()

    def _is_low(self, count: int, rows: int) -> bool:
        """Drawn several at a time, since each request takes its time."""
        if self._ahead is None:
            return count <= 1 or rows <= self._rows_ahead * 3 // 4
        return count <= self._ahead - self._ahead // 4

    def _draw(self, run: Drawn, count: int, rows: int) -> list[Indices]:
        info = self.dataset.info
        drawn: list[Indices] = []
        while count + len(drawn) <= (1 if self._ahead is None else self._ahead) or (
            self._ahead is None and rows < self._rows_ahead
        ):
            indices = self._draws.draw(info.num_samples, info.split)
            if indices is None:
                run.is_drawn = True
                break
            drawn.append(indices)
            rows += len(indices)
        run.waiting.extend(drawn)
        run.since += len(drawn)
        return drawn

    @property
    def _rows_ahead(self) -> int:
        """Half of what may be fetched ahead."""
        of_row = row_bytes(self.dataset.query, self.dataset.info.embedding_dim)
        return min(MAX_ROWS_AHEAD, self.dataset.prefetch_bytes // (2 * of_row))

    def _begin(self) -> Drawn:
        # Drawn by torch's DataLoader for its workers: what the sampler draws from torch's global generator stays the same.
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        epoch, resume, self._resume, self._has_run = self.epoch, self._resume, None, True
        told = self._sampler_state.epoch
        self._announced |= told is not None and told != self._told
        self._tell(epoch)
        if resume is not None:
            return self._resumed(resume)
        self._sampler_state.begin()
        self._draws.begin()
        return Drawn(epoch)

    # States

    def state_dict(self) -> dict[str, Any]:
        """Where the training loop is. Counts batches that it received, never those that were drawn ahead.

        It holds the sampler's own state, where it has a state_dict and a load_state_dict; else the states of its generators when
        the epoch began. As large as these are. Raises CpstreamError where the sampler has neither, with the remedy.
        """
        self._sampler_state.check_kind()
        refuse_state_ahead(self.dataset, self.dataset.taker_ahead)
        refuse_saving(self._prefetcher if self._run is not None else "", self._name)
        run = self._run
        if self._resume is not None:
            return dict(self._resume)
        state = {**self._identity(), "rank": self.dataset.ranks()[0]}
        if run is None or run.finished:
            return {**state, "epoch": self.epoch, "batches": 0, "digest": 0, **self._sampler_state.now()}
        state |= {"epoch": run.epoch, "batches": run.delivered, "digest": run.digest, **self._sampler_state.at_start()}
        if self._sampler_state.kind == "own":
            state |= {"now": self._sampler_state.now(), "since": run.since, "waiting": [each.tolist() for each in run.waiting]}
        return state

    def load_state_dict(self, state: Mapping[str, Any], *, accept_version: bool = False) -> None:
        """Go on where the state was taken: the next iteration begins there, those after it at an epoch's beginning.

        Raises StateMismatch when the state is of other data, another sampler or another number of ranks; and, when the iteration
        begins, if the sampler does not draw again what the state counts. accept_version: as StreamingEmbeddingsDataset's; the epoch
        that is left is drawn to its end, so that the sampler begins the next one as it would have. It must suit the new length.
        """
        state = self._accepted(state) if accept_version else self.dataset.met(state)
        if "sampler" not in state:
            raise StateMismatch(
                f"the state is of a loader without a sampler, and this one has {self._name}; load it into loader(dataset) as it was"
            )
        for name, here in self._identity().items():
            check_equal(name, state.get(name), here)
        rank = self.dataset.ranks()[0]
        if state["rank"] != rank and self._sampler_state.kind != "epoch":
            raise StateMismatch(
                f"the state is of rank {state['rank']}, and this is rank {rank}: what a sampler draws may differ between ranks, so "
                "save and load a state for each"
            )
        self._sampler_state.check(state)
        refuse_resuming(self._prefetcher if self._run is not None else "", self._name)
        self._resume, self._run = dict(state), None

    def _accepted(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state where its version is there still; else that epoch left, and the next to be begun on the current version."""
        fingerprint = self.dataset.accept(state)
        if fingerprint == state["fingerprint"]:
            return state
        ahead = ("now", "since", "waiting")  # drawn of other data
        kept = {name: value for name, value in state.items() if name not in ahead}
        return {**kept, "fingerprint": fingerprint, "batches": 0, "digest": 0, "is_left": bool(state.get("batches"))}

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprint": self.dataset.info.fingerprint,
            "split": self.dataset.split,
            "sampler": self._name,
            "batch_size": self._draws.batch_size,
            "drop_last": self._draws.drop_last,
            "world_size": self.dataset.ranks()[1],
        }

    def _resumed(self, state: Mapping[str, Any]) -> Drawn:
        run = Drawn(state["epoch"], state["batches"], state["batches"], state["digest"])
        self._sampler_state.begin_at(state)
        self._draws.begin()
        if state.get("is_left"):
            return self._after(state["epoch"])
        if "now" in state:
            self._go_on(run, state)
        else:
            self._draw_again(run, state["batches"], state["rank"] == self.dataset.ranks()[0])
        if not run.waiting:
            self._draw(run, 0, 0)
        if run.waiting or self._draws.has_failed:
            return run
        # The epoch was at its end, which only the sampler knew: the next one follows.
        return self._next_after(run.epoch if run.delivered else run.epoch - 1)

    def _next_after(self, epoch: int) -> Drawn:
        self._tell(epoch + 1)
        self._sampler_state.begin()
        self._draws.begin()
        return Drawn(self._epoch)

    def _after(self, epoch: int) -> Drawn:
        """The epoch behind one that was left, which is drawn to its end here, if it has one."""
        info = self.dataset.info
        for _ in range(len(self) + 1 if self._has_length else 0):  # a RandomSampler draws once more at its end
            if self._draws.draw(info.num_samples, info.split) is None:
                break
        return self._next_after(epoch)

    def _draw_again(self, run: Drawn, batches: int, is_checked: bool) -> None:
        """What was delivered before. Raises StateMismatch where it is something else this time."""
        digest = 0
        for _ in range(batches):
            indices = self._draws.draw(self.dataset.info.num_samples, self.dataset.split)
            if indices is None:
                break
            run.since += 1
            digest = digest_of(indices, digest)
        if run.since < batches or (is_checked and digest != run.digest):
            raise StateMismatch(
                f"{self._name} draws other batches than the {batches} that the state counts: were its arguments the same, and "
                "does it draw from its own generators alone?"
            )

    def _go_on(self, run: Drawn, state: Mapping[str, Any]) -> None:
        """With a sampler's own state, and what it had drawn ahead.

        Where drawing again from its earlier state leads to the same, the sampler goes on from there, so that its state may be
        one of whole epochs; else, as with one that follows the loss, its later state is all there is.
        """
        waiting: list[Indices] = [np.array(indices, np.int64) for indices in state["waiting"]]
        drawn = [self._draws.draw(self.dataset.info.num_samples, self.dataset.split) for _ in range(state["since"])]
        again = [each.tolist() for each in drawn if each is not None]
        run.waiting.extend(waiting)
        run.since = state["since"]
        is_same = len(again) == len(drawn) and again[len(again) - len(waiting) :] == state["waiting"]
        if not is_same or not same(self._sampler_state.now(), state["now"]):
            self._sampler_state.begin_at(state["now"])
            self._draws.begin()
            run.since = len(waiting)
