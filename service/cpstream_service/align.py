"""Match embeddings with CPS values by path, and report everything left out, by reason.

Paths are matched first, over all rows that have one, usable or not: a row whose own partner is unusable must not get another's
value. Rows are judged after that.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from cpstream_client.wire import AlignmentReport, Dropped

from .reasons import HARMLESS, Reason
from .sources import SourceSplit
from .sources.cps_table import CpsTable

MAX_EXAMPLES = 5
_CHUNK_ROWS = 16384
Side = Literal["embedding", "cps"]


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


@dataclass(frozen=True)
class AlignedSplit:
    """A split in its served order. file_paths: N normalised paths, ascending; cps (N,) float32.

    source (M, D) float32 holds the embeddings, rows (N,) int64 which of them are served: they are gathered on use.
    """

    name: str
    file_paths: list[str]
    cps: npt.NDArray[np.float32]
    source: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    report: AlignmentReport

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dimension(self) -> int:
        return int(self.source.shape[1])

    def gather(self, low: int, high: int) -> npt.NDArray[np.float32]:
        """Embeddings of samples low to high. (high - low, D) float32."""
        return self.source[self.rows[low:high]]

    @cached_property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """All embeddings, in one array. (N, D) float32."""
        return self.gather(0, len(self))


def align(source: SourceSplit, table: CpsTable) -> AlignedSplit:
    """Align one split. Never raises: what cannot be used is in the report."""
    drops = _Drops()
    embeddings = _Keys(source.file_paths, (problem.file_path for problem in source.problems))
    cps_rows = _Keys(table.file_paths, (problem.file_path for problem in table.problems))
    for problem in source.problems:
        drops.add(problem.reason, "embedding", str(problem))
    for problem in table.problems:
        drops.add(problem.reason, "cps", str(problem))

    finite = finite_rows(source.embeddings)
    vectors = source.embeddings
    row_of = embeddings.resolve(finite, drops, "embedding", lambda a, b: vectors[a].tobytes() == vectors[b].tobytes())
    for i in np.flatnonzero(~finite).tolist():
        drops.add(Reason.NON_FINITE_EMBEDDING, "embedding", source.file_paths[i])

    with np.errstate(over="ignore", under="ignore"):
        cps = table.cps.astype(np.float32)
    valid = np.isfinite(cps) & (cps > 0)
    line_of = cps_rows.resolve(valid, drops, "cps", lambda a, b: bool(cps[a] == cps[b]), table.lines)
    for i in np.flatnonzero(~valid).tolist():
        text = table.bad_texts.get(i, str(table.cps[i]))
        drops.add(Reason.INVALID_CPS, "cps", f"{table.file_paths[i]} (line {table.lines[i]}): {text!r}")

    exact, by_suffix = match_paths(embeddings.known, cps_rows.known)
    pairs = [(key, key) for key in exact if key in row_of and key in line_of]
    num_exact = len(pairs)
    pairs += [(ours, theirs) for ours, theirs in by_suffix.items() if ours in row_of and theirs in line_of]
    pairs.sort()

    matched = exact.union(by_suffix), exact.union(by_suffix.values())
    _add_unmatched(drops, row_of.keys(), line_of.keys(), pairs, matched)
    rows = np.fromiter((row_of[ours] for ours, _ in pairs), np.int64, len(pairs))
    cps_at = np.fromiter((line_of[theirs] for _, theirs in pairs), np.int64, len(pairs))
    report = AlignmentReport(
        split=source.name,
        num_embeddings=len(source.file_paths) + len(source.problems),
        num_cps=len(table.file_paths) + len(table.problems),
        num_aligned=len(pairs),
        num_exact=num_exact,
        num_by_suffix=len(pairs) - num_exact,
        dropped=drops.report(),
    )
    return AlignedSplit(source.name, [ours for ours, _ in pairs], cps[cps_at], source.embeddings, rows, report)


def num_lost(report: AlignmentReport) -> int:
    """Rows dropped, without those whose twin is served: what strict refuses."""
    return sum(dropped.count for dropped in report.dropped if dropped.reason not in HARMLESS)


def find_leaks(splits: Sequence[AlignedSplit]) -> dict[str, tuple[Dropped, ...]]:
    """The paths that each split shares with another: one entry for each other split, its name as the reason."""
    paths = {split.name: set(split.file_paths) for split in splits}
    leaks = {}
    for name in paths:
        shared = ((other, sorted(paths[name] & paths[other])) for other in paths if other != name)
        leaks[name] = tuple(Dropped(other, len(both), tuple(both[:MAX_EXAMPLES])) for other, both in shared if both)
    return leaks


def match_paths(ours: set[str], theirs: set[str]) -> tuple[set[str], dict[str, str]]:
    """Which keys belong together: (the equal ones, ours -> theirs by the longest suffix that is unique on both sides).

    A suffix starts after a /. It must be unique among all keys of a side, those that match exactly included. Suffixes are tried
    from the shortest up: one that is unique on both sides stays so when it gets longer, and names the same pair.
    """
    exact = ours & theirs
    matched: dict[str, str] = {}
    if len(exact) == len(ours) or len(exact) == len(theirs):
        return exact, matched
    level = [(ours, theirs)]
    depth = 0
    while level:
        depth += 1
        deeper = []
        for group_of_ours, group_of_theirs in level:
            our_groups, their_groups = _by_suffix(group_of_ours, depth), _by_suffix(group_of_theirs, depth)
            for suffix, a in our_groups.items():
                b = their_groups.get(suffix)
                if b is None:
                    continue
                if len(a) == 1 and len(b) == 1:
                    if a[0] not in exact:
                        matched[a[0]] = b[0]
                elif not exact.issuperset(a) and not exact.issuperset(b):
                    deeper.append((set(a), set(b)))
        level = deeper
    return exact, matched


def _by_suffix(keys: Iterable[str], depth: int) -> dict[str, list[str]]:
    """Keys grouped by their last `depth` parts; a key of fewer parts, or of a folder, is in no group."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        if key.endswith("/"):
            continue
        parts = key.rsplit("/", depth)
        if len(parts) > depth:
            suffix = key[len(parts[0]) + 1 :]
        elif len(parts) == depth:
            suffix = key
        else:
            continue
        groups.setdefault(suffix, []).append(key)
    return groups


class _Keys:
    """The keys of one side. first: key -> its first row; others: key -> all its rows, where there are several."""

    def __init__(self, file_paths: list[str], of_problems: Iterable[str | None]) -> None:
        self.file_paths = file_paths
        self.first: dict[str, int] = {}
        self.others: dict[str, list[int]] = {}
        for i, path in enumerate(file_paths):
            key = normalise_path(path)
            if self.first.setdefault(key, i) != i:
                self.others.setdefault(key, [self.first[key]]).append(i)
        self.known = set(self.first)
        self.known.update(normalise_path(path) for path in of_problems if path is not None)

    def resolve(
        self,
        usable: npt.NDArray[np.bool_],
        drops: "_Drops",
        side: Side,
        same: Callable[[int, int], bool],
        lines: npt.NDArray[np.int64] | None = None,
    ) -> dict[str, int]:
        """The one row that speaks for each key: key -> row. Duplicates go to drops."""
        row_of = self.first if usable.all() else {key: i for key, i in self.first.items() if usable[i]}
        for key, all_rows in self.others.items():
            rows = [i for i in all_rows if usable[i]]
            row_of.pop(key, None)
            if not rows:
                continue
            where = key if lines is None else f"{key} (lines {', '.join(str(lines[i]) for i in rows)})"
            if all(same(rows[0], i) for i in rows[1:]):
                row_of[key] = rows[0]
                if len(rows) > 1:
                    drops.add(Reason.IDENTICAL_DUPLICATE, side, where, len(rows) - 1)
            else:
                drops.add(Reason.CONFLICTING_DUPLICATE, side, where, len(rows))
        return row_of


def _add_unmatched(
    drops: "_Drops",
    ours: Set[str],
    theirs: Set[str],
    pairs: list[tuple[str, str]],
    matched: tuple[set[str], set[str]],
) -> None:
    """Usable keys that are served by no pair. Ambiguous: another key of the same file name found no partner either."""
    if len(pairs) == len(ours) == len(theirs):
        return
    left_ours, left_theirs = ours - {key for key, _ in pairs}, theirs - {key for _, key in pairs}
    names_ours = {key.rpartition("/")[2] for key in left_ours - matched[0]}
    names_theirs = {key.rpartition("/")[2] for key in left_theirs - matched[1]}
    for key in sorted(left_ours):
        ambiguous = key not in matched[0] and key.rpartition("/")[2] in names_theirs
        drops.add(Reason.AMBIGUOUS_PATH if ambiguous else Reason.NO_CPS, "embedding", key)
    for key in sorted(left_theirs):
        ambiguous = key not in matched[1] and key.rpartition("/")[2] in names_ours
        drops.add(Reason.AMBIGUOUS_PATH if ambiguous else Reason.NO_EMBEDDING, "cps", key)


def finite_rows(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which rows hold finite numbers only. (M, D) float32 -> (M,) bool."""
    finite = np.empty(len(embeddings), np.bool_)
    with np.errstate(over="ignore", invalid="ignore"):
        for low in range(0, len(embeddings), _CHUNK_ROWS):
            rows = embeddings[low : low + _CHUNK_ROWS]
            # The sum of squares is finite only if every number is; it may overflow where they are, so look again there.
            here = np.isfinite(np.einsum("ij,ij->i", rows, rows))
            here[~here] = np.isfinite(rows[~here]).all(axis=1)
            finite[low : low + _CHUNK_ROWS] = here
    return finite


class _Drops:
    """Counts and first examples by reason and side."""

    def __init__(self) -> None:
        self._found: dict[tuple[Reason, Side], tuple[int, list[str]]] = {}

    def add(self, reason: Reason, side: Side, example: str, count: int = 1) -> None:
        total, examples = self._found.get((reason, side), (0, []))
        if len(examples) < MAX_EXAMPLES:
            examples.append(example)
        self._found[reason, side] = (total + count, examples)

    def report(self) -> tuple[Dropped, ...]:
        order = list(Reason)
        found = sorted(self._found.items(), key=lambda item: (item[0][1] != "embedding", order.index(item[0][0])))
        return tuple(Dropped(reason.code, count, tuple(examples), side) for (reason, side), (count, examples) in found)
