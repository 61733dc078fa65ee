"""The recordings that the operator has had forgotten: a file of their paths, one a line, which alignment leaves out."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

from ..errors import DataError, MissingFileError
from ..sources.regular import open_regular
from ..sources.rows import path_problem
from .match import Matches, ends, normalise_path

WHAT = "a forget list"
COMMENT = "#"
_HEX_DIGITS = 32


@dataclass(frozen=True, slots=True)
class ForgetList:
    """keys: the alignment keys of the paths that are listed; digest: of the keys, whatever their order; "" where there are none."""

    keys: frozenset[str] = frozenset()
    digest: str = ""

    @classmethod
    def of(cls, paths: Iterable[str]) -> "ForgetList":
        from blake3 import blake3  # here, for the command runs without it on a machine that has the client alone

        keys = frozenset(map(normalise_path, paths))
        return cls(keys, blake3("\n".join(sorted(keys)).encode()).hexdigest()[:_HEX_DIGITS] if keys else "")


NOTHING = ForgetList()


def read_forget_list(path: Path | None) -> ForgetList:
    """The list in a file, UTF-8: one path a line, blank lines and those that begin with # passed over (./#a.wav is a path).

    path: None for no list. Raises DataError where it cannot be read, or a line names no file: that a recording stays served
    because its line was damaged must not pass unseen.
    """
    if path is None:
        return NOTHING
    if not path.exists():
        raise MissingFileError(
            f"{path}: there is no such file; set --forget-list to a forget list, an empty file if nothing is to go"
        )
    with open_regular(path, WHAT, "--forget-list") as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} is not UTF-8; write the forget list as UTF-8, one path a line") from None
    paths = []
    for number, written in enumerate(text.split("\n"), 1):
        listed = written.strip()
        if not listed or listed.startswith(COMMENT):
            continue
        if (problem := path_problem(listed)) is not None:
            raise DataError(f"{path}: line {number}: {problem}; each line must be the path of a recording, or begin with {COMMENT}")
        paths.append(listed)
    return ForgetList.of(paths)


def forgotten(known: tuple[Set[str], Set[str]], matches: Matches, forget: ForgetList) -> tuple[set[str], set[str]]:
    """The keys of each side that are of a listed recording: listed themselves, or the partner of one that is."""
    ours, theirs = set(known[0] & forget.keys), set(known[1] & forget.keys)
    pairs = [(key, other) for key, other in matches.partners.items() if key in ours or other in theirs]
    return ours.union(key for key, _ in pairs), theirs.union(other for _, other in pairs)


class _Aligned(Protocol):
    """What is needed of an AlignedSplit, whose module has use for this one."""

    @property
    def file_paths(self) -> list[str]: ...
    @property
    def listed(self) -> Set[str]: ...


def strangers(forget: ForgetList, splits: Sequence[_Aligned]) -> dict[str, str]:
    """Listed paths that no row has, each with a served path that is like it, or "": a slip of the pen leaves a recording served."""
    left = forget.keys.difference(*(split.listed for split in splits))
    by_name: dict[str, list[str]] = {}
    for key in left:
        by_name.setdefault(_name(key), []).append(key)
    like = dict.fromkeys(sorted(left), "")
    if left:
        for path in chain.from_iterable(split.file_paths for split in splits):
            for key in by_name.get(_name(path), ()):
                if not like[key] and (key in ends(path, absolute=True) or path in ends(key, absolute=True)):
                    like[key] = path
    return like


def _name(key: str) -> str:
    return key.rpartition("/")[2]
