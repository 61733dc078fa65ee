"""Why keys found no partner, for people: roots that differ, and spellings that differ in one thing only."""

from collections.abc import Callable, Set
from urllib.parse import unquote

from cpstream_client.contract.bodies import RootDifference, SpellingDifference

from .drops import MAX_EXAMPLES
from .match import PLAIN, Head, MatchRule
from .roots import RootPair, find_roots, options_of, pasted

Sides = tuple[Set[str], Set[str]]
"""Of the embeddings, of the CPS rows."""

_REWRITE = "write the paths alike on both sides"
_KINDS: tuple[tuple[str, Callable[[str], str], str], ...] = (
    ("case", str.casefold, _REWRITE),
    ("extension", MatchRule(by="stem").compared, "--match stem"),
    ("blanks", lambda key: "".join(key.split()), _REWRITE),
    ("percent-encoding", unquote, _REWRITE),
)


def root_differences(
    known: Sides, left: Sides, rule: MatchRule = PLAIN, head: Head | None = None, num_by_head: int = 0
) -> tuple[RootDifference, ...]:
    """The head that was passed over, if any, and the roots by which keys that are left differ; each with the options that map them.

    The options of all of them go together.
    """
    applied = [] if head is None else [_pair_of(head, num_by_head)]
    pairs = applied + _found(known, left, rule)
    return tuple(
        RootDifference(
            embeddings=pair.ours,
            cps=pair.theirs,
            count=pair.count,
            applied=pair in applied,
            options=tuple(map(pasted, options)),
        )
        for pair, options in zip(pairs, options_of(pairs), strict=True)
    )


def _found(known: Sides, left: Sides, rule: MatchRule) -> list[RootPair]:
    if not left[0] or not left[1] or rule.by == "name":
        return []
    if rule.by == "stem":
        stems = MatchRule(by="stem", bare=rule.bare)
        known, left = (
            ({stems.compared(key, rule.bare) for key in sides[0]}, {stems.compared(key) for key in sides[1]})
            for sides in (known, left)
        )
    return find_roots(*known, *left)


def _pair_of(head: Head, count: int) -> RootPair:
    text, other = (head.text, "") if head.text.endswith("/") else (f"{head.text}/", "/")  # the shorter path is absolute
    return RootPair(text, other, count) if head.side == "embedding" else RootPair(other, text, count)


def spelling_differences(left: Sides) -> tuple[SpellingDifference, ...]:
    """What keys that are left differ in. A key counts once, and only where no other of its side is spelled like it."""
    ours, theirs = set(left[0]), set(left[1])
    found = []
    for differs_in, spelled, remedy in _KINDS:
        if not ours or not theirs:
            break
        our_owners, their_owners = _owners(ours, spelled), _owners(theirs, spelled)
        pairs = sorted((key, other) for name, key in our_owners.items() if key and (other := their_owners.get(name)))
        if pairs:
            examples = tuple(f"{key} and {other}" for key, other in pairs[:MAX_EXAMPLES])
            found.append(SpellingDifference(differs_in=differs_in, count=len(pairs), remedy=remedy, examples=examples))
            ours.difference_update(key for key, _ in pairs)
            theirs.difference_update(other for _, other in pairs)
    return tuple(found)


def _owners(keys: Set[str], spelled: Callable[[str], str]) -> dict[str, str]:
    """Spelling -> the only key that has it; "" where several do."""
    owners: dict[str, str] = {}
    for key in keys:
        name = spelled(key)
        owners[name] = "" if name in owners else key
    return owners
