"""What a run leaves: a table for people, JSON for programs, written anew after every measurement."""

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .findings import Finding, Outcome, Series

_COLORS = {"ok": "green", "below": "red", "info": "dim"}


@dataclass
class Report:
    """One run. path: where its JSON goes, or None."""

    command: str
    started_at: str
    machine: dict[str, Any]
    options: dict[str, Any]
    path: Path | None
    outcomes: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Take in an outcome and write the file."""
        self.outcomes.append(outcome)
        if self.path is not None:
            write(self.path, json.dumps(self.to_json(), indent=1))

    def to_json(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "started_at": self.started_at,
            "machine": self.machine,
            "options": self.options,
            "outcomes": [outcome.to_json() for outcome in self.outcomes],
        }

    @property
    def findings(self) -> list[Finding]:
        return [finding for outcome in self.outcomes for finding in outcome.findings]

    def print(self, console: Console) -> None:
        where = self.machine
        packages = ", ".join(f"{name} {found}" for name, found in where["packages"].items())
        console.print(
            f"{self.started_at}: {where['cores']} cores, {where['cpu']}, {where['memory_gb']} GB, {where['system']}, "
            f"Python {where['python']}, load average {where['load_average']}"
            + (f", {where['gpu']}" if where["gpu"] else "")
            + f"\n{packages}\n$ {self.command}\n",
            highlight=False,
        )
        quick = "A quick run shows that the suite works; its figures mean nothing"
        title = quick if self.options["quick"] else "Medians of interleaved rounds"
        table = Table("measurement", "ours", "the other side", title=title, title_justify="left")
        for name in ("value", "least to most", "target", ""):
            table.add_column(name, justify="right", no_wrap=True)
        for finding in self.findings:
            table.add_row(*_row(finding))
        console.print(table)
        for outcome in self.outcomes:
            if outcome.status != "done":
                console.print(f"{outcome.name}: {outcome.status}: {outcome.reason}", highlight=False, markup=False)
        for finding in self.findings:
            if finding.note:
                console.print(f"{finding.what}: {finding.note}", highlight=False, markup=False)


def _row(finding: Finding) -> list[str]:
    unit = "x" if finding.unit == "x" else f" {finding.unit}"
    sides = [_side(side) for side in finding.sides] if finding.unit == "x" else []
    ours, other = [*sides, "", ""][:2]
    target = finding.target
    bound = "" if target is None else f"{'>=' if target.is_floor else '<='} {target.bound:g}{unit}"
    spread = f"{number(min(finding.values))} to {number(max(finding.values))}"
    verdict = finding.verdict
    return [escape(finding.what), ours, other, f"{number(finding.value)}{unit}", spread, bound, f"[{_COLORS[verdict]}]{verdict}[/]"]


def _side(side: Series) -> str:
    return f"{number(side.median)} {side.unit}"


def number(value: float) -> str:
    """Three digits that count: 612 000, 41.3, 0.127."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}".replace(",", " ")
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def write(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(text + "\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
