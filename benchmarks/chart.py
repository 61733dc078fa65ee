"""The chart of the README: samples a second of every loader of a run, side by side."""

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from .findings import Finding, Kind
from .report import number

_COLORS: dict[str, str] = {"ours": "#0b6e99", "local": "#b8b8b8", "network": "#e0a458"}
_MEANINGS: dict[str, str] = {"ours": "cpstream, over HTTP", "network": "others, over the network", "local": "others, local"}
_LEFT_OUT = ("split 4 times", "batch 32", "batch 4096", "concurrent")


def bars(findings: Iterable[Finding]) -> list[tuple[str, Kind, float]]:
    """Label, kind and median samples/s of every loader at batch 256, the fastest first."""
    rates: dict[tuple[str, Kind], list[float]] = {}
    for finding in findings:
        for side in finding.sides:
            if side.unit == "samples/s" and side.kind in _COLORS and not any(part in side.label for part in _LEFT_OUT):
                rates.setdefault((side.label, side.kind), []).append(side.median)
    return sorted(((label, kind, median(values)) for (label, kind), values in rates.items()), key=lambda bar: -bar[2])


def draw(findings: Iterable[Finding], where: dict[str, Any], samples: int, dim: int, path: Path) -> None:
    """Write the PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    shown = bars(findings)
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.34 * len(shown)), layout="constrained")
    positions = range(len(shown))
    values = [value for *_, value in shown]
    axes.barh(positions, values, color=[_COLORS[kind] for _, kind, _ in shown], height=0.72)
    axes.set_yticks(positions, [label for label, *_ in shown], fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 2, max(values) * 2.5)
    for position, value in zip(positions, values, strict=True):
        axes.annotate(number(value), (value, position), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_xlabel(
        f"samples/s, logarithmic: {samples:,} x {dim} float32, shuffled, batch 256, to torch tensors, on {where['cores']} cores",
        fontsize=9,
    )
    axes.spines[["top", "right"]].set_visible(False)
    kinds = [kind for kind in _MEANINGS if any(kind == shown_kind for _, shown_kind, _ in shown)]
    axes.legend(handles=[Patch(color=_COLORS[kind], label=_MEANINGS[kind]) for kind in kinds], frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
