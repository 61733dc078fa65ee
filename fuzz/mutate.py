"""Mutations of bytes that know nothing of their form. Everything is drawn from one Random, so that a seed says it all."""

from collections.abc import Callable, Sequence
from random import Random

EDGES = (
    b"\0",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\xff\xff\xff\xff",
    b"\xff" * 8,
    b"\0" * 8,
)
EDGES += (b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\0\0\0\0\0\0\0\x80", b"\0\0\0\0\0\1", b"\0\0\0@")
NUMBERS = (
    b"0",
    b"-1",
    b"1e999",
    b"nan",
    b"9223372036854775808",
    b"99999999999999999999999",
    b"0x10",
    b"1_0",
    b"1.5",
    "٣".encode(),
    b"-0",
)

Mutation = Callable[[bytearray, Random, Sequence[bytes]], None]
"""Changes the bytes in place. The sequence: all seeds, to take pieces from."""


def _at(data: bytearray, random: Random) -> int:
    """A position, half of them near the beginning, where headers are."""
    size = len(data) + 1
    return random.randrange(min(size, 200) if random.random() < 0.5 else size)


def flip(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    if data:
        data[min(_at(data, random), len(data) - 1)] ^= 1 << random.randrange(8)


def replace(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    if data:
        data[min(_at(data, random), len(data) - 1)] = random.randrange(256)


def edge(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """Bytes set to what ends a range: lengths made huge or negative."""
    at, value = _at(data, random), random.choice(EDGES)
    data[at : at + len(value)] = value


def insert(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    at = _at(data, random)
    data[at:at] = random.randbytes(random.randrange(1, 9)) if random.random() < 0.5 else random.choice(EDGES)


def delete(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    at = _at(data, random)
    del data[at : at + random.randrange(1, 1 + min(64, 1 + len(data)))]


def cut(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    del data[_at(data, random) :]


def repeat(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    at = _at(data, random)
    piece = data[at : at + random.randrange(1, 257)]
    data[at:at] = piece * random.choice((1, 1, 2, 8, 200))


def splice(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    """A piece of another seed, in place of a piece or between two."""
    other = random.choice(seeds)
    start = random.randrange(len(other) + 1)
    at, length = _at(data, random), random.randrange(1, 1025)
    data[at : at + random.choice((0, length))] = other[start : start + length]


def number(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """A number in the text made another one."""
    digits = [i for i, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
    if digits:
        at = end = random.choice(digits)
        while end < len(data) and data[end] in b"0123456789.":
            end += 1
        data[at:end] = random.choice(NUMBERS)


ANY: tuple[Mutation, ...] = (flip, flip, replace, edge, edge, insert, delete, cut, repeat, splice, number)


def mutated(seed: bytes, random: Random, seeds: Sequence[bytes], mutations: Sequence[Mutation] = ANY) -> bytes:
    """The seed after one to four mutations; one most often."""
    data = bytearray(seed)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        random.choice(mutations)(data, random, seeds)
    return bytes(data)
