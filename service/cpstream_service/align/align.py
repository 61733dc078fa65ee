"""Match embeddings with CPS values by path, and report everything left out, by reason.

Paths are matched first, over all rows that have one, usable or not: a row whose own partner is unusable must not get another's
value. Rows are judged after that.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cpstream_client.contract.bodies import AlignmentReport, Dropped

from ..sources.cps_table import CpsTable
from ..sources.rows import HARMLESS, Embeddings, Reason, SourceSplit, rows_per_chunk
from .match import match_paths, normalise_paths

MAX_EXAMPLES = 5
Side = Literal["embedding", "cps"]


@dataclass(frozen=True)
class AlignedSplit:
    """A split in its served order. file_paths: N normalised paths, ascending; cps (N,) float32.

    source (M, D) float32 holds the embeddings, rows (N,) int64 which of them are served: they are gathered on use.
    """

    name: str
    file_paths: list[str]
    cps: npt.NDArray[np.float32]
    source: Embeddings
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
        out = np.empty((len(self), self.dimension), np.float32)
        rows = rows_per_chunk(self.dimension)
        for low in range(0, len(self), rows):
            out[low : low + rows] = self.gather(low, low + rows)
        return out

    @cached_property
    def arrow_paths(self) -> pa.StringArray:
        """The file paths as Arrow has them. Raises ValueError when they exceed 2 GB together."""
        # Not by pa.array, which imports pandas where that is installed: two seconds.
        encoded = [path.encode() for path in self.file_paths]
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        if len(ends) and ends[-1] > np.iinfo(np.int32).max:
            raise ValueError(f"the paths of split {self.name!r} exceed 2 GB")
        offsets = np.concatenate([[0], ends]).astype("<i4")
        return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


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

    num_by_suffix = 0
    if len(row_of) == len(embeddings.known) and len(line_of) == len(cps_rows.known) and row_of.keys() == line_of.keys():
        ours = theirs = sorted(row_of)  # clean data: what follows would find the same, a second later for a million rows
    else:
        exact, by_suffix = match_paths(embeddings.known, cps_rows.known)
        suffix_pairs = {ours: theirs for ours, theirs in by_suffix.items() if ours in row_of and theirs in line_of}
        num_by_suffix = len(suffix_pairs)
        ours = sorted(exact.intersection(row_of, line_of).union(suffix_pairs))
        theirs = [suffix_pairs.get(key, key) for key in ours] if suffix_pairs else ours
        matched = exact.union(by_suffix), exact.union(by_suffix.values())
        _add_unmatched(drops, (row_of.keys(), line_of.keys()), (ours, theirs), matched)
    rows = np.fromiter(map(row_of.__getitem__, ours), np.int64, len(ours))
    cps_at = np.fromiter(map(line_of.__getitem__, theirs), np.int64, len(theirs))
    report = AlignmentReport(
        split=source.name,
        num_embeddings=len(source.file_paths) + len(source.problems),
        num_cps=len(table.file_paths) + len(table.problems),
        num_aligned=len(ours),
        num_exact=len(ours) - num_by_suffix,
        num_by_suffix=num_by_suffix,
        dropped=drops.report(),
    )
    return AlignedSplit(source.name, ours, cps[cps_at], source.embeddings, rows, report)


def num_lost(report: AlignmentReport) -> int:
    """Rows dropped, without those whose twin is served: what strict refuses."""
    return sum(dropped.count for dropped in report.dropped if dropped.reason not in HARMLESS)


def find_leaks(splits: Sequence[AlignedSplit]) -> dict[str, tuple[Dropped, ...]]:
    """The paths that each split shares with another: one entry for each other split, its name as the reason."""
    paths = {split.name: set(split.file_paths) for split in splits}
    leaks = {}
    for name in paths:
        shared = ((other, sorted(paths[name] & paths[other])) for other in paths if other != name)
        leaks[name] = tuple(
            Dropped(reason=other, count=len(both), examples=tuple(both[:MAX_EXAMPLES])) for other, both in shared if both
        )
    return leaks


class _Keys:
    """The keys of one side. first: key -> its first row; others: key -> all its rows, where there are several."""

    def __init__(self, file_paths: list[str], of_problems: Iterable[str | None]) -> None:
        self.others: dict[str, list[int]] = {}
        keys = normalise_paths(file_paths)
        self.first = dict(zip(keys, range(len(keys)), strict=True))
        if len(self.first) < len(keys):
            self.first.clear()
            for i, key in enumerate(keys):
                if self.first.setdefault(key, i) != i:
                    self.others.setdefault(key, [self.first[key]]).append(i)
        of_others = normalise_paths([path for path in of_problems if path is not None])
        # A copy where `resolve` will take keys out.
        self.known: Set[str] = set(self.first).union(of_others) if self.others or of_others else self.first.keys()

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
    usable: tuple[Set[str], Set[str]],
    served: tuple[list[str], list[str]],
    matched: tuple[set[str], set[str]],
) -> None:
    """Usable keys that are not served. Pairs are (ours, theirs). Ambiguous: another of that file name found no partner either."""
    left = [(usable[side] - set(served[side])) if len(usable[side]) > len(served[side]) else set() for side in (0, 1)]
    names = [{_name_of(key) for key in left[side] - matched[side]} for side in (0, 1)]
    reasons: tuple[tuple[Side, Reason], ...] = (("embedding", Reason.NO_CPS), ("cps", Reason.NO_EMBEDDING))
    for side, (name, missing) in enumerate(reasons):
        for key in sorted(left[side]):
            ambiguous = key not in matched[side] and _name_of(key) in names[1 - side]
            drops.add(Reason.AMBIGUOUS_PATH if ambiguous else missing, name, key)


def _name_of(key: str) -> str:
    return key.rpartition("/")[2]


def finite_rows(embeddings: Embeddings) -> npt.NDArray[np.bool_]:
    """Which rows hold finite numbers only. (M, D) float32 -> (M,) bool."""
    finite = np.empty(len(embeddings), np.bool_)
    step = rows_per_chunk(embeddings.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        for low in range(0, len(embeddings), step):
            rows = embeddings[low : low + step]
            # The sum of squares is finite only if every number is; it may overflow where they are, so look again there.
            here = np.isfinite(np.einsum("ij,ij->i", rows, rows))
            here[~here] = np.isfinite(rows[~here]).all(axis=1)
            finite[low : low + step] = here
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
        return tuple(
            Dropped(reason=reason.code, count=count, examples=tuple(examples), side=side)
            for (reason, side), (count, examples) in found
        )
