"""What it takes to go on with a sampler in another process: its own state, or those of its generators when the epoch began."""

import copy
import random
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ..errors import CpstreamError, StateMismatch
from .draws import name_of

Kind = Literal["own", "generators", "epoch", "none"]
_SEEDLESS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
"""Those of torch that draw from its global generator, unless they are given one of their own."""
_FIXED = (SequentialSampler, DistributedSampler, list, tuple, range, np.ndarray, torch.Tensor)
"""What depends on nothing but the epoch."""
_MOST_PARTS = 64


class SamplerState:
    """How a sampler is saved. kind: "own", by its state_dict; "generators", by theirs; "epoch": it depends on nothing else.

    A sampler of torch that has no generator gets one, seeded at each epoch's beginning by torch's global generator.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        parts = dict(_parts(sampler, "", set()))
        self._bare: list[torch.Generator] = []
        for path, part in list(parts.items()):
            if isinstance(part, _SEEDLESS) and part.generator is None:
                part.generator = torch.Generator()
                self._bare.append(part.generator)
                parts[f"{path}.generator".lstrip(".")] = part.generator
        self._generators = {path: part for path, part in parts.items() if _is_generator(part)}
        self._outer = [part for part in parts.values() if callable(getattr(part, "set_epoch", None))][:1]  # the others are its own
        self.kind: Kind = self._kind()
        self._began: dict[str, Any] | None = None

    def _kind(self) -> Kind:
        sampler = self._sampler
        if callable(getattr(sampler, "state_dict", None)) and callable(getattr(sampler, "load_state_dict", None)):
            return "own"
        if self._generators:
            return "generators"
        if isinstance(sampler, BatchSampler) and type(sampler) is BatchSampler:
            sampler = sampler.sampler
        return "epoch" if self._outer or isinstance(sampler, _FIXED) else "none"

    # Epochs

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler, if it wants to know."""
        for sampler in self._outer:
            sampler.set_epoch(epoch)

    @property
    def follows_epochs(self) -> bool:
        """Whether it depends on the epoch that it is told, or on none."""
        return bool(self._outer) or self.kind == "epoch"

    @property
    def epoch(self) -> int | None:
        """The sampler's own, where it shows one: set_epoch of the sampler itself counts, too."""
        epoch = getattr(self._outer[0], "epoch", None) if self._outer else None
        return epoch if isinstance(epoch, int) else None

    def begin(self) -> None:
        """Before the sampler's iterator is made."""
        for generator in self._bare:  # as RandomSampler itself does
            generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        self._began = self.now()

    def begin_at(self, state: Mapping[str, Any]) -> None:
        """The same, as an epoch began whose state this is."""
        if self.kind == "own":
            self._sampler.load_state_dict(copy.deepcopy(state["own"]))
        for path, generator in self._generators.items() if self.kind == "generators" else ():
            _load(generator, state["generators"][path])
        self._began = self.now()

    # States

    def at_start(self) -> dict[str, Any]:
        """As the epoch began, before any batch was drawn."""
        return copy.deepcopy(self._began) if self._began is not None else self.now()

    def now(self) -> dict[str, Any]:
        if self.kind == "own":
            return {"own": copy.deepcopy(self._sampler.state_dict())}
        if self.kind == "generators":
            return {"generators": {path: _state_of(generator) for path, generator in self._generators.items()}}
        return {}

    def check_kind(self) -> None:
        """Raises CpstreamError where nothing is known that a state could hold."""
        if self.kind == "none":
            raise CpstreamError(
                f"{name_of(self._sampler)} has no state that could be saved: give it a generator of its own (an attribute that is "
                "a torch.Generator, numpy Generator or random.Random), or set_epoch if it depends on the epoch alone, or "
                "state_dict() and load_state_dict()"
            )

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises StateMismatch where a state is that of another kind of sampler."""
        self.check_kind()
        here = {"own": "own", "generators": "generators"}.get(self.kind)
        there = next((name for name in ("own", "generators") if name in state), None)
        if here != there or (here == "generators" and state["generators"].keys() != self._generators.keys()):
            raise StateMismatch(
                f"the state holds {_said(state, there)}, and {name_of(self._sampler)} here has "
                f"{_said({'generators': self._generators}, here)}; resume with the sampler that the state is of"
            )


def _said(state: Mapping[str, Any], kind: str | None) -> str:
    if kind == "generators":
        return f"states of {', '.join(path or 'a generator' for path in state['generators'])}"
    return "a state_dict of its own" if kind else "neither generators nor a state of its own"


def _parts(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """A sampler, and the samplers and generators that it holds, each once, by the attributes that lead to it."""
    if id(value) in seen:
        return
    if _is_generator(value):
        seen.add(id(value))
        yield path, value
        return
    inside: list[tuple[str, Any]] = []
    if isinstance(value, list | tuple) and path and len(value) <= _MOST_PARTS:
        inside = [(str(number), each) for number, each in enumerate(value)]
    elif isinstance(value, dict) and len(value) <= _MOST_PARTS:
        inside = [(str(key), each) for key, each in value.items()]
    elif isinstance(value, Sampler) or not path:
        yield path, value
        inside = list(getattr(value, "__dict__", {}).items())
    seen.add(id(value))
    for name, each in inside:
        yield from _parts(each, f"{path}.{name}".lstrip("."), seen)


def _is_generator(value: object) -> bool:
    return isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random)


def _state_of(generator: Any) -> Any:
    """As JSON has it."""
    if isinstance(generator, torch.Generator):
        return b64encode(generator.get_state().numpy().tobytes()).decode()
    if isinstance(generator, random.Random):
        version, numbers, gauss = generator.getstate()
        return [version, list(numbers), gauss]
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return _plain(generator.bit_generator.state)


def _load(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.frombuffer(bytearray(b64decode(state)), dtype=torch.uint8))
    elif isinstance(generator, random.Random):
        version, numbers, gauss = state
        generator.setstate((version, tuple(numbers), gauss))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_arrays(state))
    else:
        generator.bit_generator.state = _arrays(state)


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, arrays and tensors in them included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(each, other[name]) for name, each in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor | np.ndarray):
        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
    return bool(one == other)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"dtype", "values"}:
            return np.array(value["values"], value["dtype"])
        return {name: _arrays(each) for name, each in value.items()}
    return value
