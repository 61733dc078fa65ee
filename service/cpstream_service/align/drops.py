"""Every row that alignment left out, by reason."""

from array import array
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from cpstream_client.contract.bodies import Dropped

from ..sources.rows import Reason, RowProblem
from .match import Side, normalise_path

MAX_EXAMPLES = 5


class DroppedRow(NamedTuple):
    """A row that was left out. file_path: "" if it has no readable one. where: "line 5", "row 3" or ""; detail: what is wrong."""

    side: Side
    reason: str
    file_path: str
    where: str
    detail: str


@dataclass(slots=True)
class _Group:
    """The rows of one reason and side, a few bytes each. lines: 0 where unknown; notes: row -> (where, detail) if there is more."""

    examples: list[str] = field(default_factory=list)
    file_paths: list[str] = field(default_factory=list)
    lines: "array[int]" = field(default_factory=lambda: array("q"))
    notes: dict[int, tuple[str, str]] = field(default_factory=dict)


class Drops:
    """The rows that were left out, all of them, and their first examples.

    forgotten: keys of each side, embeddings and CPS rows, that shall be forgotten: of these no other reason and no example is kept,
    as those go into the snapshot and to clients.
    """

    def __init__(self, forgotten: tuple[Set[str], Set[str]] = (frozenset(), frozenset())) -> None:
        self._forgotten: dict[Side, Set[str]] = {"embedding": forgotten[0], "cps": forgotten[1]}
        self._groups: dict[tuple[Side, Reason], _Group] = {}

    def add(
        self,
        reason: Reason,
        side: Side,
        file_path: str,
        example: str | None = "",
        *,
        line: int = 0,
        where: str = "",
        detail: str = "",
    ) -> None:
        """One row. example: how it is shown among the first, if not by its path; None where it is not."""
        of_side = self._forgotten[side]
        if of_side and normalise_path(file_path) in of_side:
            reason, example, detail = Reason.FORGOTTEN, None, ""
        group = self._groups.setdefault((side, reason), _Group())
        if where or detail:
            group.notes[len(group.file_paths)] = where, detail
        if example is not None and len(group.examples) < MAX_EXAMPLES:
            group.examples.append(example or file_path)
        group.file_paths.append(file_path)
        group.lines.append(line)

    def add_problem(self, problem: RowProblem, side: Side) -> None:
        """A row that the source could not use."""
        self.add(problem.reason, side, problem.file_path or "", str(problem), where=problem.where, detail=problem.detail)

    def __len__(self) -> int:
        return sum(len(group.file_paths) for group in self._groups.values())

    def __iter__(self) -> Iterator[DroppedRow]:
        """All rows, those of one reason and side together, as in `report`."""
        for (side, reason), group in self._sorted():
            for i, (file_path, line) in enumerate(zip(group.file_paths, group.lines, strict=True)):
                where, detail = group.notes.get(i, ("", ""))
                yield DroppedRow(side, reason.code, file_path, f"line {line}" if line else where, detail)

    def report(self) -> tuple[Dropped, ...]:
        """Count and first examples by reason and side, embeddings first."""
        return tuple(
            Dropped(reason=reason.code, count=len(group.file_paths), examples=tuple(group.examples), side=side)
            for (side, reason), group in self._sorted()
        )

    def _sorted(self) -> list[tuple[tuple[Side, Reason], _Group]]:
        order = list(Reason)
        return sorted(self._groups.items(), key=lambda item: (item[0][0] != "embedding", order.index(item[0][1])))
