"""Where paths differ by their roots only: which roots, in how many rows, and the `--map-root` options that make them one.

Found for people, never applied unasked: `clean/` and `noisy/` look like a folder that was moved, too.
"""

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass

from .match import ends, split_word

MAX_ROOTS = 64
"""More than this are no roots, but folders that were cut."""
LEAST_SHARE = 0.05
"""Of the paths of a side, in a root that was moved."""
LEAST_ROWS = 5
"""Of a root that was moved, or half of what lies there: fewer may have their names in common by chance."""
_NO_ROOTS = ("", "/")
_SAMPLE_ROWS = 20_000
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class RootPair:
    """Paths in folder `ours` on the embeddings' side that are, from there on, those in `theirs` on the other side; count: rows."""

    ours: str
    theirs: str
    count: int


def find_roots(ours: Set[str], theirs: Set[str], left_ours: Set[str], left_theirs: Set[str]) -> list[RootPair]:
    """The roots by which the keys that are left on both sides differ, those of most rows first.

    A tail counts only where one key alone of all on each side ends on it, and a single row shows no root that was moved.
    """
    left = set(left_ours), set(left_theirs)
    found: list[RootPair] = []
    for _ in range(_ROUNDS):
        before = len(found)
        for roots in _candidates(ours, theirs, left):
            if len(found) == MAX_ROOTS:
                break
            pairs = [(key, other) for key, other in _moved(roots, left[0]) if other in left[1]]
            if pairs and (_is_whole(*roots) or _plausible(roots, len(pairs), found, (ours, theirs))):
                found.append(RootPair(*roots, len(pairs)))
                left[0].difference_update(key for key, _ in pairs)
                left[1].difference_update(other for _, other in pairs)
        if len(found) in (before, MAX_ROOTS) or not left[0] or not left[1]:
            break
    return sorted(found, key=lambda pair: -pair.count)


def _moved(roots: tuple[str, str], keys: Set[str]) -> Iterator[tuple[str, str]]:
    """The keys in the first folder, each with what it would be in the second."""
    at = len(roots[0])
    return ((key, roots[1] + key[at:]) for key in keys if key.startswith(roots[0]))


def _candidates(ours: Set[str], theirs: Set[str], left: tuple[set[str], set[str]]) -> Iterator[tuple[str, str]]:
    """Pairs of roots, by the longest tail that each of a sample of keys shares with another, those of most keys first."""
    keys = sorted(left[0])
    sample = keys[:: max(1, len(keys) // _SAMPLE_ROWS)]
    tails = {tail for key in sample for tail in ends(key)}
    our_owners, their_owners = _owners(ours, tails), _owners(theirs, tails)
    votes: Counter[tuple[str, str]] = Counter()
    for key in sample:
        tail = next((tail for tail in ends(key) if tail in their_owners), None)
        if tail is None or our_owners[tail] is None:
            continue
        other = their_owners[tail]
        if other is not None and other in left[1]:
            votes[key[: len(key) - len(tail)], other[: len(other) - len(tail)]] += 1
    for pair, _ in votes.most_common(2 * MAX_ROOTS):
        yield pair


def _owners(keys: Set[str], tails: Collection[str]) -> dict[str, str | None]:
    """tail -> the only key that ends on it, or None where several do."""
    owners: dict[str, str | None] = {}
    for key in keys:
        for tail in ends(key):
            if tail in tails:
                owners[tail] = None if tail in owners else key
    return owners


def _plausible(roots: tuple[str, str], count: int, found: Sequence[RootPair], known: tuple[Set[str], Set[str]]) -> bool:
    """Whether two folders that contradict each other may be one that was moved.

    Not if they are of two splits, or lie in a root that was found; nor if they hold but a small part of their side, as the folder
    of a speaker does, or few names in common; nor if a side has the same names in both of them.
    """
    words = {split_word(root) for root in roots} - {None}
    if len(words) > 1 or any(_lies_in(roots[0], pair.ours) or _lies_in(roots[1], pair.theirs) for pair in found):
        return False
    sizes = [sum(key.startswith(root) for key in keys) for root, keys in zip(roots, known, strict=True)]
    if any(size < LEAST_SHARE * len(keys) for size, keys in zip(sizes, known, strict=True)):
        return False
    if count < 2 or count < min(LEAST_ROWS, min(sizes) / 2):
        return False
    in_both = sum(other in keys for keys in known for _, other in _moved(roots, keys))
    return in_both * LEAST_ROWS <= count


def _is_whole(ours: str, theirs: str) -> bool:
    """Whether the path of one side is, in whole, the end of the other's."""
    return ours in _NO_ROOTS or theirs in _NO_ROOTS


def _lies_in(root: str, known: str) -> bool:
    return root != known and known not in _NO_ROOTS and root.startswith(known)


def options_of(pairs: Sequence[RootPair]) -> list[tuple[str, ...]]:
    """For each pair, the values of --map-root that make its roots one. Roots that hang together all become one of them."""
    group = {root: {root} for pair in pairs for root in (pair.ours, pair.theirs)}
    for pair in pairs:
        together = group[pair.ours] | group[pair.theirs]
        for root in together:
            group[root] = together
    weight: Counter[str] = Counter()
    for pair in pairs:
        weight.update({pair.ours: pair.count, pair.theirs: pair.count})
    of_rows = {pair.theirs for pair in pairs}
    options = []
    for pair in pairs:
        together = group[pair.ours]
        target = "" if "" in together else max(together, key=lambda root: (weight[root], root in of_rows, root))
        options.append(tuple(f"{root}={target}" for root in (pair.ours, pair.theirs) if root != target))
    return options


def pasted(option: str) -> str:
    """An option as it is typed in a shell."""
    return f"--map-root {shlex.quote(option)}"
