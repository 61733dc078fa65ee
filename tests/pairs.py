"""The rule by which paths belong together, slow and obvious, as the oracle of tests; and paths whose truth is known."""

import random


def is_end(short: str, long: str) -> bool:
    """Whether a path is, in whole and from a folder on, the end of another."""
    return short != long and (long.endswith("/" + short) or (short.startswith("/") and long.endswith(short)))


def slow_match(ours: set[str], theirs: set[str]) -> tuple[set[str], dict[str, str]]:
    """Equal paths; or, where there are none, one head that all pairs show and all paths of its side have."""
    equal = ours & theirs
    pairs = [(a, b) for a in ours - equal for b in theirs - equal if is_end(a, b) or is_end(b, a)]
    unique = [(a, b) for a, b in pairs if sum(a == x for x, _ in pairs) == sum(b == y for _, y in pairs) == 1]
    heads = {("ours", a.removesuffix(b)) if is_end(b, a) else ("theirs", b.removesuffix(a)) for a, b in unique}
    if equal or len(heads) != 1:
        return equal, {}
    ((side, head),) = heads
    if not all(key.startswith(head) for key in (ours if side == "ours" else theirs)):
        return equal, {}
    return equal, {a: b for a in ours for b in theirs if (a == head + b if side == "ours" else b == head + a)}


def recordings(seed: int, count: int) -> list[str]:
    """Paths of speaker, video and number: the same names in many folders."""
    draw = random.Random(seed)
    drawn = (f"id{draw.randrange(40):02d}/v{draw.randrange(9)}/{draw.randrange(200):05d}.wav" for _ in range(count))
    return list(dict.fromkeys(drawn))


def some(draw: random.Random, truth: list[str], share: float) -> list[str]:
    return [path for path in truth if draw.random() < share]
