"""Where paths differ by their roots only: which roots, in how many rows, and the `--map-root` options that make them one.

Found for people, never applied unasked: `clean/` and `noisy/` look like a folder that was moved, too.
"""

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass

from .match import ends, split_word

MAX_ROOTS = 16
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

    A tail counts only where one key alone of all on each side ends on it. Folders within a root that was found are none: what lies
    there has its place. Nor are two folders that name different splits, nor the folders of a single row.
    """
    left, equal = (set(left_ours), set(left_theirs)), ours & theirs
    found: list[RootPair] = []
    for _ in range(_ROUNDS):
        before = len(found)
        for our_root, their_root in _candidates(ours, theirs, left):
            if len(found) == MAX_ROOTS:
                break
            if not _plausible(our_root, their_root, found, equal):
                continue
            at = len(our_root)
            inside = (key for key in left[0] if key.startswith(our_root))
            pairs = [(key, other) for key in inside if (other := their_root + key[at:]) in left[1]]
            if len(pairs) > 1 or (pairs and not (our_root and their_root)):
                found.append(RootPair(our_root, their_root, len(pairs)))
                left[0].difference_update(key for key, _ in pairs)
                left[1].difference_update(other for _, other in pairs)
        if len(found) in (before, MAX_ROOTS) or not left[0] or not left[1]:
            break
    return sorted(found, key=lambda pair: -pair.count)


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
    for pair, _ in votes.most_common(4 * MAX_ROOTS):
        yield pair


def _owners(keys: Set[str], tails: Collection[str]) -> dict[str, str | None]:
    """tail -> the only key that ends on it, or None where several do."""
    owners: dict[str, str | None] = {}
    for key in keys:
        for tail in ends(key):
            if tail in tails:
                owners[tail] = None if tail in owners else key
    return owners


def _plausible(ours: str, theirs: str, found: Sequence[RootPair], equal: Set[str]) -> bool:
    """Whether two folders may be one: neither lies in a root that was found; if both have a name, no equal key lies in them."""
    for pair in found:
        for root, known in ((ours, pair.ours), (theirs, pair.theirs)):
            if known and root != known and root.startswith(known):
                return False
    if not ours or not theirs:
        return True
    words = split_word(ours), split_word(theirs)
    if None not in words and words[0] != words[1]:
        return False
    return not any(key.startswith((ours, theirs)) for key in equal)


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
