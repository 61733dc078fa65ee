"""The pictures of the examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from model import Score

INK, BLUE, ORANGE, GREY = "#1f2933", "#2f6db3", "#d9822b", "#9aa5b1"
PAPER: Any = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
}


def plot_predictions(table: pd.DataFrame, score: Score, split: str, path: Path) -> None:
    """Predicted against true speech rate, with the line on which they are equal. table: with the columns cps and predicted."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 5.8), layout="constrained")
        axes = figure.subplots()
        rates = table[["cps", "predicted"]]
        low, high = rates.min(axis=None), rates.max(axis=None)
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
        axes.plot([low, high], [low, high], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="predicted = true", zorder=3)
        visible = min(0.75, max(0.05, 300 / len(table)))  # many points show by their density
        points: Any = {"s": 22, "color": BLUE, "alpha": visible, "linewidths": 0, "label": "one utterance", "rasterized": True}
        axes.scatter("cps", "predicted", data=table, **points)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(xlabel="true speech rate (characters per second)", ylabel="predicted speech rate (characters per second)")
        axes.legend(loc="upper left", frameon=False)
        _title(
            axes,
            f"Speech rate from embeddings, {split} split",
            f"R² {score.r2:.3f}   MAE {score.mae:.2f} characters/s   n {score.n:,}",
        )
        figure.savefig(path, dpi=130)


def plot_probes(labels: Sequence[str], curves: Mapping[str, Sequence[float]], own_r2: float, split: str, path: Path) -> None:
    """R2 of the ridge probes by layer. curves: "trained" and "untrained"; own_r2: of what the trained network predicts itself."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(
            own_r2, color=INK, linewidth=1, zorder=1, linestyle=(0, (4, 3)), label=f"the network's own output, {own_r2:.3f}"
        )
        for (name, values), color, offset in zip(curves.items(), (BLUE, ORANGE), (10, -17), strict=True):
            axes.plot(range(len(values)), values, "o-", color=color, linewidth=2, markersize=7, label=f"{name} network, probed")
            label: Any = {"textcoords": "offset points", "ha": "center", "color": color, "bbox": PAPER}
            for x, value in enumerate(values):
                axes.annotate(f"{value:.3f}", (x, value), (0, offset), **label)
        low, high = min(own_r2, *map(min, curves.values())), max(own_r2, *map(max, curves.values()))
        margin = max(0.005, 0.15 * (high - low))
        axes.set(ylim=(low - margin, high + margin), xlim=(-0.4, len(labels) - 0.6), ylabel=f"R² on the {split} split")
        axes.set_xticks(range(len(labels)), labels)
        axes.legend(loc="lower left", frameon=False)
        _title(axes, "Where the network holds the speech rate", "ridge probe of each layer's activations, fitted on train")
        figure.savefig(path, dpi=130)


def _title(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(f"{title}\n", loc="left", fontsize=12, fontweight="bold")
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=10, color=INK)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
