"""Match embeddings with CPS values by path, and report everything left out, by reason.

Paths are matched first, over all rows that have one, usable or not: a row whose own partner is unusable must not get another's
value. Rows are judged after that.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cpstream_client.contract.bodies import AlignmentReport, Dropped, RootDifference, SpellingDifference

from ..arrow import strings
from ..sources.cps_table import CpsTable
from ..sources.file_rows import FileRows
from ..sources.rows import HARMLESS, Embeddings, Reason, SourceSplit, rows_per_chunk
from ..sources.verdicts import Verdicts, judge
from .differences import Sides, root_differences, spelling_differences
from .drops import MAX_EXAMPLES, Drops
from .forget import NOTHING, ForgetList, forgotten
from .match import PLAIN, Matches, MatchRule, Side, match_paths, normalise_paths

USUAL_CPS = (1.0, 60.0)
"""Characters per second that people speak; what lies outside is served, with a warning."""
UNUSUAL_CPS, ZERO_EMBEDDING, MISSING_LABEL = "unusual-cps", "zero-embedding", "missing-label"


@dataclass(frozen=True)
class AlignedSplit:
    """A split in its served order. file_paths: N normalised paths, ascending; cps (N,) float32.

    source (M, D) float32 holds the embeddings, rows (N,) int64 which of them are served: they are gathered on use. drops: every row
    that was left out. definition: what the rates are, in one line. labels: further ones by name, each (N,) float32. listed: keys
    of the forget list that a row has. again: aligns it anew, its rows judged; None where they have been.
    """

    name: str
    file_paths: list[str]
    cps: npt.NDArray[np.float32]
    source: Embeddings
    rows: npt.NDArray[np.int64]
    report: AlignmentReport
    drops: Drops = field(default_factory=Drops)
    definition: str = ""
    labels: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    listed: Set[str] = frozenset()
    again: "Callable[[], AlignedSplit] | None" = None

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
        try:
            return strings(self.file_paths)
        except OverflowError:
            raise ValueError(f"the paths of split {self.name!r} exceed 2 GB") from None


def align(
    source: SourceSplit, table: CpsTable, rule: MatchRule = PLAIN, forget: ForgetList = NOTHING, *, unjudged: bool = False
) -> AlignedSplit:
    """Align one split. What cannot be used is in the report; DataError where the file of the rows has changed.

    What shall be forgotten takes part in the matching, so that no other row gets another partner, and is left out then.
    unjudged: rows that lie in a file may be taken for sound if all of them are served; who gathers them looks.
    """
    unjudged &= isinstance(source.embeddings, FileRows) and len(source.file_paths) == len(table.file_paths)
    rule = rule.with_bare_keys() if source.bare_keys else rule
    judged = ThreadPoolExecutor(1, thread_name_prefix="judge-rows")
    verdicts = judged.submit(_taken_for_sound if unjudged else judge_rows, source.embeddings)
    embeddings = _Keys(source.file_paths, (problem.file_path for problem in source.problems))
    if table.file_paths is source.file_paths and embeddings.are_all and not table.problems:
        cps_rows = embeddings  # the rates that the rows hold themselves
    else:
        cps_rows = _Keys(table.file_paths, (problem.file_path for problem in table.problems))
    known = embeddings.known, cps_rows.known
    listed = forget.keys & (known[0] | known[1]) if forget.keys else frozenset()
    matches = match_paths(*known, rule, source.name) if listed else None
    gone = (frozenset[str](), frozenset[str]()) if matches is None else forgotten(known, matches, forget)
    drops = Drops(gone)
    for problem in source.problems:
        drops.add_problem(problem, "embedding")
    for problem in table.problems:
        drops.add_problem(problem, "cps")

    with judged:
        finite, zero = verdicts.result()
    vectors = source.embeddings
    row_of = embeddings.resolve(finite, drops, "embedding", lambda a, b: vectors[a].tobytes() == vectors[b].tobytes())
    for i in np.flatnonzero(~finite).tolist():
        drops.add(Reason.NON_FINITE_EMBEDDING, "embedding", source.file_paths[i])

    with np.errstate(over="ignore", under="ignore"):
        cps = table.cps.astype(np.float32)
    valid = np.isfinite(cps) & (cps > 0)

    def same_labels(a: int, b: int) -> bool:
        further = table.labels.values()
        return bool(cps[a] == cps[b]) and all(np.array_equal(column[a], column[b], equal_nan=True) for column in further)

    line_of = cps_rows.resolve(valid, drops, "cps", same_labels, table.lines)
    for i in np.flatnonzero(~valid).tolist():
        path, line, text = table.file_paths[i], int(table.lines[i]), repr(table.bad_texts.get(i, str(table.cps[i])))
        drops.add(Reason.INVALID_CPS, "cps", path, f"{path} (line {line}): {text}", line=line, detail=text)

    num_by_head = 0
    roots: tuple[RootDifference, ...] = ()
    spellings: tuple[SpellingDifference, ...] = ()
    if matches is None and len(row_of) == len(known[0]) and len(line_of) == len(known[1]) and _has_same_keys(row_of, line_of):
        ours = theirs = sorted(row_of)  # clean data: what follows would find the same, a second later for a million rows
        num_equal = len(ours)
    else:
        matches = matches or match_paths(*known, rule, source.name)
        row_of, line_of = _left_out(row_of, gone[0], drops, "embedding"), _left_out(line_of, gone[1], drops, "cps")
        pairs = [(key, key) for key in matches.equal if key in row_of and key in line_of]
        num_equal = len(pairs)
        pairs += [(key, other) for key, other in matches.partners.items() if key in row_of and other in line_of]
        pairs.sort(key=itemgetter(1 if rule.bare else 0))
        ours, theirs = [key for key, _ in pairs], [other for _, other in pairs]
        left = _add_unmatched(drops, row_of.keys() - set(ours), line_of.keys() - set(theirs), matches)
        num_by_head = len(ours) - num_equal if matches.head is not None else 0
        roots = root_differences(known, left, rule, matches.head, num_by_head)
        spellings = spelling_differences(left)
    rows, cps_at = _looked_up(row_of, ours), _looked_up(line_of, theirs)
    again = partial(align, source, table, rule, forget) if unjudged else None
    if again is not None and len(rows) < len(finite):
        return again()
    rates = cps[cps_at]
    labels = {name: column[cps_at] for name, column in table.labels.items()}
    file_paths = theirs if rule.bare else ours  # what has no extension is no path
    report = AlignmentReport(
        split=source.name,
        num_embeddings=len(source.file_paths) + len(source.problems),
        num_cps=len(table.file_paths) + len(table.problems),
        num_aligned=len(ours),
        num_exact=num_equal,
        num_by_suffix=num_by_head,
        num_by_setting=len(ours) - num_equal - num_by_head,
        dropped=drops.report(),
        roots=roots,
        spellings=spellings,
        warnings=(*_warnings(file_paths, rates, zero[rows]), *_missing_labels(file_paths, labels)),
    )
    definition, vectors = table.definition, source.embeddings
    return AlignedSplit(source.name, file_paths, rates, vectors, rows, report, drops, definition, labels, listed, again)


def _has_same_keys(row_of: dict[str, int], line_of: dict[str, int]) -> bool:
    # In the same order, as one program writes both sides, they need not be looked up, each somewhere in memory.
    return row_of is line_of or list(row_of) == list(line_of) or row_of.keys() == line_of.keys()


def _looked_up(row_of: dict[str, int], keys: list[str]) -> npt.NDArray[np.int64]:
    """The row of each key. (N,) int64."""
    rows = row_of.values() if list(row_of) == keys else map(row_of.__getitem__, keys)
    return np.fromiter(rows, np.int64, len(keys))


def _left_out(row_of: dict[str, int], gone: Set[str], drops: Drops, side: Side) -> dict[str, int]:
    """The rows without those that shall be forgotten, which go to drops."""
    for key in sorted(gone & row_of.keys()):
        drops.add(Reason.FORGOTTEN, side, key)
    return {key: row for key, row in row_of.items() if key not in gone} if gone else row_of


def _missing_labels(file_paths: list[str], labels: Mapping[str, npt.NDArray[np.float32]]) -> Iterator[Dropped]:
    """How many samples have NaN for each further label."""
    for name, values in labels.items():
        missing = np.flatnonzero(np.isnan(values))
        if len(missing):
            examples = tuple(f"{name}: {file_paths[i]}" for i in missing[:MAX_EXAMPLES].tolist())
            yield Dropped(reason=MISSING_LABEL, count=len(missing), examples=examples, side="cps")


def num_lost(report: AlignmentReport) -> int:
    """Rows dropped, without those whose twin is served: what strict refuses."""
    return sum(dropped.count for dropped in report.dropped if dropped.reason not in HARMLESS)


def find_leaks(splits: Sequence[AlignedSplit]) -> dict[str, tuple[Dropped, ...]]:
    """The paths that each split shares with another: one entry for each other split, its name as the reason."""
    paths = {split.name: set(split.file_paths) if len(splits) > 1 else set() for split in splits}
    leaks = {}
    for name in paths:
        shared = ((other, sorted(paths[name] & paths[other])) for other in paths if other != name)
        leaks[name] = tuple(
            Dropped(reason=other, count=len(both), examples=tuple(both[:MAX_EXAMPLES])) for other, both in shared if both
        )
    return leaks


class _Keys:
    """The keys of one side. first: key -> its first row; others: key -> all its rows, where there are several.

    are_all: whether there are neither others nor keys of rows with problems.
    """

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
        self.are_all = not self.others and not of_others
        # A copy where `resolve` will take keys out.
        self.known: Set[str] = self.first.keys() if self.are_all else set(self.first).union(of_others)

    def resolve(
        self,
        usable: npt.NDArray[np.bool_],
        drops: Drops,
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
                reason, left_out = Reason.IDENTICAL_DUPLICATE, rows[1:]
            else:
                reason, left_out = Reason.CONFLICTING_DUPLICATE, rows
            for nth, i in enumerate(left_out):
                drops.add(reason, side, key, None if nth else where, line=0 if lines is None else int(lines[i]))
        return row_of


def _add_unmatched(drops: Drops, ours: set[str], theirs: set[str], matches: Matches) -> Sides:
    """Put usable keys that are not served to the drops. Returns those without a partner, of each side."""
    left: list[set[str]] = []
    partnered = matches.equal.union(matches.partners), matches.equal.union(matches.partners.values())
    reasons: tuple[tuple[Side, Reason], ...] = (("embedding", Reason.NO_CPS), ("cps", Reason.NO_EMBEDDING))
    for (side, missing), keys, with_partner, related in zip(reasons, (ours, theirs), partnered, matches.related, strict=True):
        for key in sorted(keys):
            reason = Reason.PARTNER_DROPPED if key in with_partner else Reason.AMBIGUOUS_PATH if key in related else missing
            drops.add(reason, side, key)
        left.append(keys - with_partner)
    return left[0], left[1]


def _warnings(file_paths: list[str], rates: npt.NDArray[np.float32], zero: npt.NDArray[np.bool_]) -> tuple[Dropped, ...]:
    """What is served, and looks wrong."""
    low, high = USUAL_CPS
    unusual = np.flatnonzero((rates < low) | (rates > high)).tolist()
    zeros = np.flatnonzero(zero).tolist()
    rate_examples = tuple(f"{file_paths[i]}: {rates[i]}" for i in unusual[:MAX_EXAMPLES])
    zero_examples = tuple(file_paths[i] for i in zeros[:MAX_EXAMPLES])
    found = (
        Dropped(reason=UNUSUAL_CPS, count=len(unusual), examples=rate_examples, side="cps"),
        Dropped(reason=ZERO_EMBEDDING, count=len(zeros), examples=zero_examples, side="embedding"),
    )
    return tuple(warning for warning in found if warning.count)


def _taken_for_sound(embeddings: Embeddings) -> Verdicts:
    return np.ones(len(embeddings), np.bool_), np.zeros(len(embeddings), np.bool_)


def judge_rows(embeddings: Embeddings) -> Verdicts:
    """Which rows hold finite numbers only, and which nothing but zeros. (M, D) float32 -> (M,) bool, (M,) bool."""
    finite, zero = np.empty(len(embeddings), np.bool_), np.empty(len(embeddings), np.bool_)
    step = rows_per_chunk(embeddings.shape[1])
    for low in range(0, len(embeddings), step):
        finite[low : low + step], zero[low : low + step] = judge(embeddings[low : low + step])
    return finite, zero
