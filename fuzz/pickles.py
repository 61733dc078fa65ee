"""Mutations of pickles that know their opcodes, and values that pickles of embeddings hold, for seeds."""

import pickletools
import struct
from collections.abc import Sequence
from random import Random

from .mutate import ANY, Mutation

_HUGE = (2**31 - 1, 2**32 - 1, 2**63 - 1, 2**28, 10**6)
_OPCODES = [ord(op.code) for op in pickletools.opcodes]
_NAMES = (
    "os system",
    "builtins exec",
    "builtins eval",
    "builtins getattr",
    "builtins bytearray",
    "numpy ndarray",
    "numpy dtype",
    "numpy.core.multiarray _reconstruct",
    "numpy.core.multiarray scalar",
    "numpy._core.numeric _frombuffer",
    "numpy memmap",
    "collections OrderedDict",
    "copyreg _reconstructor",
    "builtins object",
    "_codecs encode",
    "pathlib PosixPath",
    "torch._utils _rebuild_tensor_v2",
    "decimal Decimal",
)
_PIECES = (
    *(bytes([byte]) for byte in b"()]}N012.tldeasuRb\x81\x85\x86\x88\x8f\x90\x91\x93\x94"),
    b"I1\n",
    b"L99999999999999999999999L\n",
    b"F1e999\n",
    b"X\2\0\0\0ab",
    b"K\7",
)


def _positions(data: bytearray) -> list[int]:
    """Where opcodes begin, as far as the pickle can be read; it begins behind the header of the .npy file."""
    start = max(0, data.find(b"\n", 0, 256) + 1)
    found = []
    try:
        for _, _, at in pickletools.genops(bytes(data[start:])):
            found.append(start + (at or 0))
    except Exception:
        pass
    return found or [start]


def opcode(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """One opcode in place of another."""
    at = random.choice(_positions(data))
    if at < len(data):
        data[at] = random.choice(_OPCODES)


def swap(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """Two runs of opcodes, exchanged."""
    at = sorted(random.choice(_positions(data)) for _ in range(4))
    data[at[0] : at[3]] = data[at[2] : at[3]] + data[at[1] : at[2]] + data[at[0] : at[1]]


def drop(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    at = sorted(random.choice(_positions(data)) for _ in range(2))
    del data[at[0] : at[1] if random.random() < 0.3 else at[0] + 1]


def again(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """A run of opcodes, over and over."""
    positions = _positions(data)
    first = random.randrange(len(positions))
    last = min(len(positions) - 1, first + random.choice((1, 2, 5, 30)))
    piece = data[positions[first] : positions[last]]
    data[positions[last] : positions[last]] = piece * random.choice((1, 3, 300))


def pieces(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """A few opcodes put in."""
    at = random.choice(_positions(data))
    data[at:at] = b"".join(random.choice(_PIECES) for _ in range(random.choice((1, 1, 2, 5))))


def huge(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """A length, or an index into the memo, larger than the file."""
    at, number = random.choice(_positions(data)), random.choice(_HUGE)
    small, large = struct.pack("<I", number & 0xFFFFFFFF), struct.pack("<Q", number)
    forms = (b"r" + small, b"j" + small, b"p%d\n" % number, b"g%d\n" % number, b"X" + small, b"B" + small, b"T" + small)
    forms += (b"\x8d" + large, b"\x8e" + large, b"\x95" + large, b"\x96" + large, b"\x8b" + struct.pack("<i", number & 0x7FFFFFFF))
    forms += (b"Nr" + small, b"Np%d\n" % number, b"I" + b"9" * (number % 60_000) + b"\n")
    data[at:at] = random.choice(forms)


def deep(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """Nested without end, and put where it is hashed, compared or walked."""
    at, count = random.choice(_positions(data)), random.choice((100, 3000, 200_000))
    form = random.randrange(5)
    if form == 0:
        piece = b")" + b"\x85" * count
    elif form == 1:
        piece = b"]" * count + b"a" * (count - 1)
    elif form == 2:
        piece = b"(" * count
    elif form == 3:
        piece = b"}" + b"(" + b")" + b"\x85" * count + b"K\1u"  # as the key of a dict
    else:
        piece = b"]q\xfe" + b"h\xfea" * count  # a list within itself
    data[at:at] = piece


def name(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """A class or function, called or not."""
    at = random.choice(_positions(data))
    module, _, what = random.choice(_NAMES).partition(" ")
    call = random.choice((b"", b")R", b"(X\2\0\0\0idtR", b")\x81", b"N\x85R", b")R}b", b"(K\1\x85K\1\x87tR"))
    data[at:at] = f"c{module}\n{what}\n".encode() + call


PICKLE: tuple[Mutation, ...] = (*ANY, opcode, opcode, swap, drop, again, pieces, pieces, huge, huge, deep, name)
