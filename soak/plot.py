"""The picture of a run: memory, threads and descriptors over time, of the service and of a client."""

from collections.abc import Sequence
from pathlib import Path

from .watch import GROWTH, Series, warm_up_s

_UNITS = {"memory": "MB of its own", "threads": "threads", "descriptors": "descriptors"}
_COLORS = {"service": "#3b6fb6", "client": "#d9822b"}


def draw(series: Sequence[Series], kills_s: Sequence[float], title: str, path: Path) -> None:
    """Write the PNG. Needs matplotlib. kills_s: when a worker of the service was killed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(len(GROWTH), 1, figsize=(9, 6.5), sharex=True, layout="constrained")
    for axes, kind in zip(rows, GROWTH, strict=True):
        for each in series:
            if each.kind == kind:
                minutes = [time / 60 for time in each.times]
                axes.plot(minutes, each.values, color=_COLORS[each.name], linewidth=1.2, label=each.name)
        last = max(each.times[-1] for each in series if each.times)
        axes.axvspan(0, warm_up_s(last) / 60, color="#f2f2f2", zorder=0)
        for kill in kills_s:
            axes.axvline(kill / 60, color="#cccccc", linewidth=0.6, zorder=0)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(_UNITS[kind], fontsize=9)
        axes.grid(axis="y", color="#e6e6e6", zorder=0)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=9)
    rows[0].legend(fontsize=9, loc="upper right", ncols=2)
    rows[-1].set_xlabel("minutes (grey: warm-up; lines: a worker of the service is killed)", fontsize=9)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
