"""Paths as alignment keys: how they are written, and which of two sides belong together."""

import unicodedata
from collections.abc import Sequence, Set


def normalise_path(path: str) -> str:
    r"""The alignment key of a path: Unicode NFC, \ as /, without duplicate / and leading ./ ."""
    if not path.isascii():
        path = unicodedata.normalize("NFC", path)
    if "\\" in path:
        path = path.replace("\\", "/")
    while "//" in path:
        path = path.replace("//", "/")
    while path.startswith("./"):
        path = path[2:]
    return path


def normalise_paths(paths: Sequence[str]) -> list[str]:
    """The keys of many paths; quick where all of them are keys as they stand."""
    text = "\n".join(["", *paths])
    if text.isascii() and "\\" not in text and "//" not in text and "\n./" not in text:
        return list(paths)
    return [normalise_path(path) for path in paths]


def match_paths(ours: Set[str], theirs: Set[str]) -> tuple[set[str], dict[str, str]]:
    """Which keys belong together: (the equal ones, ours -> theirs by the longest suffix that is unique on both sides).

    A suffix starts after a /. It must be unique among all keys of a side, those that match exactly included. Suffixes are tried
    from the shortest up: one that is unique on both sides stays so when it gets longer, and names the same pair.
    """
    exact = set(ours & theirs)
    matched: dict[str, str] = {}
    if len(exact) == len(ours) or len(exact) == len(theirs):
        return exact, matched
    level: list[tuple[Set[str], Set[str]]] = [(ours, theirs)]
    depth = 0
    while level:
        depth += 1
        deeper: list[tuple[Set[str], Set[str]]] = []
        for group_of_ours, group_of_theirs in level:
            our_one, our_many = _by_suffix(group_of_ours, depth)
            their_one, their_many = _by_suffix(group_of_theirs, depth)
            for suffix in our_one.keys() & their_one.keys():
                if our_one[suffix] not in exact:
                    matched[our_one[suffix]] = their_one[suffix]
            for suffix in our_many.keys() | their_many.keys():
                a = {our_one[suffix]} if suffix in our_one else our_many.get(suffix, set())
                b = {their_one[suffix]} if suffix in their_one else their_many.get(suffix, set())
                if not exact.issuperset(a) and not exact.issuperset(b):
                    deeper.append((a, b))
        level = deeper
    return exact, matched


def _by_suffix(keys: Set[str], depth: int) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Keys by their last `depth` parts: (suffix -> its only key, suffix -> its keys). A folder is in neither."""
    one: dict[str, str] = {}
    many: dict[str, set[str]] = {}
    for key in keys:
        parts = key.rsplit("/", depth)
        if len(parts) < depth or not parts[-1]:
            continue
        suffix = key[len(parts[0]) + 1 :] if len(parts) > depth else key
        other = one.setdefault(suffix, key)
        if other is not key:
            many.setdefault(suffix, {other}).add(key)
    for suffix in many:
        del one[suffix]
    return one, many
