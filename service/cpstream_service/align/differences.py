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


def root_differences(known: Sides, left: Sides, rule: MatchRule = PLAIN) -> tuple[RootDifference, ...]:
    """The roots by which keys that are left differ, each with the options that make them one."""
    if not left[0] or not left[1] or rule.by == "name":
        return ()
    if rule.by == "stem":
        stems = MatchRule(by="stem")
        known, left = (
            ({stems.compared(key, rule.bare) for key in sides[0]}, {stems.compared(key) for key in sides[1]})
            for sides in (known, left)
        )
    pairs = find_roots(*known, *left)
    return tuple(_described(pair, options) for pair, options in zip(pairs, options_of(pairs), strict=True))


def applied(head: Head, count: int) -> RootDifference:
    """The head that was passed over, as a difference of roots."""
    pair = RootPair(head.text, "", count) if head.side == "embedding" else RootPair("", head.text, count)
    if not head.text.endswith("/"):  # the shorter path is absolute: /home/me + /data/a.wav
        pair = RootPair(f"{pair.ours}/", f"{pair.theirs}/", count)
    return _described(pair, options_of([pair])[0], applied=True)


def _described(pair: RootPair, options: tuple[str, ...], applied: bool = False) -> RootDifference:
    return RootDifference(
        embeddings=pair.ours, cps=pair.theirs, count=pair.count, applied=applied, options=tuple(map(pasted, options))
    )


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
