"""The permutation of torch.randperm, without torch.

torch runs Fisher-Yates: for i in 0..n-2 swap r[i] with r[t(i)], t(i) = i + z(i) % (n - i), z from MT19937. That is sequential, and
takes 0.2 s for a million samples in Python with the GIL held. Here it goes by pieces of STEPS_AT_ONCE steps, small enough for the
processor's cache, each in a few calls of numpy: up to twice as long as torch itself.
"""

import numpy as np
import numpy.typing as npt

_Int64s = npt.NDArray[np.int64]

STEPS_AT_ONCE = 16_384


def randperm(n: int, seed: int, steps_at_once: int = STEPS_AT_ONCE) -> _Int64s:
    """torch.randperm(n, generator=torch.Generator().manual_seed(seed)). (n,) int64.

    (From n = 2^32 / 20 on, 215 million, torch uses another method; this is then a permutation of its own.)
    """
    order = np.arange(n, dtype=np.int64)
    draws = np.random.RandomState(seed & 0xFFFFFFFF)
    for low in range(0, n - 1, steps_at_once):
        high = min(low + steps_at_once, n - 1)
        z = draws.randint(0, 2**32, size=high - low, dtype=np.uint32)
        _swap(order[low:], np.arange(high - low) + z % np.arange(n - low, n - high, -1))
    return order


def _swap(rest: _Int64s, targets: _Int64s) -> None:
    """for i, target in enumerate(targets): swap rest[i] and rest[target], with target >= i. In place.

    What lies at a position just before step i came there by the last earlier step that swapped into it, from where it lay before
    that step: a forest, whose roots say where in `rest` it lay at first. They are found by pointer jumping.
    """
    steps = np.arange(len(targets))
    # Steps grouped by target, in their order within a group: the keys are unique, so the sort need not be stable.
    keys = (targets << 32) | steps
    keys.sort()
    grouped_targets, grouped_steps = keys >> 32, keys & 0xFFFFFFFF
    again = np.flatnonzero(grouped_targets[1:] == grouped_targets[:-1])
    previous = np.full(len(steps), -1)  # the last earlier step with the same target, or -1
    previous[grouped_steps[again + 1]] = grouped_steps[again]
    ends = np.delete(np.arange(len(steps)), again)  # of the groups
    last_targets, last_steps = grouped_targets[ends], grouped_steps[ends]
    inside = int(np.searchsorted(last_targets, len(steps)))  # how many of the targets are themselves steps

    # Where what lies at i just before step i lay at first: with the last other step that swapped into i, or here.
    origin = steps.copy()
    origin[last_targets[:inside]] = last_steps[:inside]
    on_itself = last_targets[:inside][last_targets[:inside] == last_steps[:inside]]
    origin[on_itself] = np.where(previous[on_itself] >= 0, previous[on_itself], on_itself)
    moving = np.flatnonzero(origin != steps)
    while len(moving):
        before = origin[moving]
        jumped = origin[before]
        moving = moving[jumped != before]
        origin[moving] = jumped[jumped != before]

    # Step i leaves at i what lay at its target; the last step into a position behind the steps leaves there what lay at itself.
    left = rest[np.where(previous >= 0, origin[previous], targets)]
    rest[last_targets[inside:]] = rest[origin[last_steps[inside:]]]
    rest[: len(steps)] = left
