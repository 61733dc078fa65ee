"""The chart of the README: how fast every loader of a run is, as a multiple of the best local loop's speed.

Loaders that were never measured against each other are compared through one that both were: ratios of interleaved rounds hold when
the machine slows down between two measurements, and samples/s do not.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .findings import Finding, Kind, Series
from .loaders import BATCH
from .report import number

BASE = f"X[perm[i:i+B]], batch {BATCH}"
_COLORS: dict[Kind, str] = {"ours": "#0b6e99", "local": "#b4b4b4", "network": "#e0a458", "limit": "#8d7fb5"}
_MEANINGS: dict[Kind, str] = {
    "ours": "cpstream",
    "network": "others, over the network",
    "local": "others, local",
    "limit": "a bound: a bare socket",
}


def speeds(findings: Iterable[Finding]) -> list[tuple[Series, float]]:
    """Every loader that a chain of ratios connects with the base, and its speed as a multiple of the base's. Fastest first."""
    ratios: dict[str, list[tuple[Series, float]]] = {}
    for finding in findings:
        if finding.unit == "x" and [side.unit for side in finding.sides] == ["samples/s", "samples/s"]:
            ours, other = finding.sides
            ratios.setdefault(other.label, []).append((ours, finding.value))
            ratios.setdefault(ours.label, []).append((other, 1 / finding.value))
    found = {BASE: (Series(BASE, [], "samples/s", "local"), 1.0)}
    reached = [BASE]
    for label in reached:  # grows: breadth first, so that a chain is as short as can be
        for side, value in ratios.get(label, []):
            if side.label not in found:
                found[side.label] = side, value * found[label][1]
                reached.append(side.label)
    return sorted(found.values(), key=lambda bar: -bar[1])


def draw(findings: Iterable[Finding], where: dict[str, Any], samples: int, dim: int, path: Path) -> None:
    """Write the PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, NullFormatter

    bars = speeds(findings)
    values = [value for _, value in bars]
    figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.3 * len(bars)), layout="constrained")
    axes.barh(range(len(bars)), values, color=[_COLORS[side.kind] for side, _ in bars], height=0.7, zorder=2)
    axes.axvline(1, color="#555555", linewidth=0.8, zorder=3)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for row, value in enumerate(values):
        text = f"{number(value)}×"
        axes.annotate(text, (value, row), (5, 0), textcoords="offset points", va="center", fontsize=9, bbox=white, zorder=4)
    axes.set_yticks(range(len(bars)), [side.label for side, _ in bars], fontsize=9)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 1.6, max(values) * 2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="#e6e6e6", zorder=0)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(f"Samples per second, as a multiple of {BASE}, all data in the loop's own memory", fontsize=11)
    figure.supxlabel(
        f"{samples:,} × {dim} float32, shuffled, to torch tensors; {where['cores']} cores, {where['cpu']}",
        fontsize=8.5,
        color="#555555",
    )
    kinds = [kind for kind in _MEANINGS if any(side.kind == kind for side, _ in bars)]
    axes.legend(handles=[Patch(color=_COLORS[kind], label=_MEANINGS[kind]) for kind in kinds], fontsize=9, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
