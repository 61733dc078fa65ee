"""Figures as plotly.js has them, in plain dicts: what is drawn. Colours and fonts are the style sheet's (charts.js)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from cpstream_client.contract.figures import Decile

from ..statistics.overlay import Overlay
from .render import number, percent, shown

Figure = dict[str, Any]
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Of lines, in the order of the splits: who sees no colours tells them apart, too."""
_NAME = 40
RATE = "Characters a second"


def label(text: str) -> str:
    """Text of others in a chart: plotly takes <, > and & for mark-up."""
    return shown(text, _NAME).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def figure(
    traces: Sequence[Figure],
    x: str,
    y: str,
    *,
    x_axis: Mapping[str, Any] | None = None,
    y_axis: Mapping[str, Any] | None = None,
    **layout: Any,
) -> Figure:
    """Traces with the titles of both axes."""
    axes = {"xaxis": {"title": {"text": x}, **(x_axis or {})}, "yaxis": {"title": {"text": y}, **(y_axis or {})}}
    return {"data": list(traces), "layout": {**axes, **layout}}


def rates(found: Overlay) -> Figure:
    """The rates of all splits over one another, as shares, so that splits of any size compare."""
    traces = []
    for at, (name, counts) in enumerate(found.counts.items()):
        total = sum(counts) + found.below[name] + found.above[name]
        shares = [count / total for count in counts]
        spans = [
            f"{number(low)} to {number(high)}: {percent(share)}"
            for (low, high), share in zip(pairwise(found.edges), shares, strict=True)
        ]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label(name),
                "x": list(found.edges),
                "y": [*shares, shares[-1]],
                "text": [*spans, spans[-1]],
                "hovertemplate": "%{text}",
                "fill": "tozeroy" if at == 0 else "none",
                "line": {"shape": "hv", "dash": DASHES[at % len(DASHES)], "width": 2},
            }
        )
    return figure(traces, RATE, "Share of the split", y_axis={"tickformat": ".0%"})


def histogram(edges: Sequence[float], counts: Sequence[int], x: str, name: str = "recordings") -> Figure:
    """One distribution, as counts between the edges."""
    spans = list(pairwise(edges))
    bars = {
        "type": "bar",
        "x": [(low + high) / 2 for low, high in spans],
        "width": [high - low for low, high in spans],
        "y": list(counts),
        "text": [
            f"{number(low)} to {number(high)}: {number(count)} {name}" for (low, high), count in zip(spans, counts, strict=True)
        ],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }
    return figure([bars], x, name.capitalize(), bargap=0.04, showlegend=False)


def deciles(found: Mapping[str, Sequence[Decile]]) -> Figure:
    """Errors by tenths of the rates, a line a split or run."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": label(name),
            "x": list(range(1, len(each) + 1)),
            "y": [decile.mae for decile in each],
            "text": [
                f"{number(decile.low)} to {number(decile.high)}: off by {number(decile.mae)}, bias {number(decile.bias)}"
                for decile in each
            ],
            "hovertemplate": "%{text}",
            "line": {"dash": DASHES[at % len(DASHES)], "width": 2},
        }
        for at, (name, each) in enumerate(found.items())
    ]
    x = "Tenths of the recordings, from slow to fast speech"
    return figure(traces, x, "Mean absolute error", y_axis={"rangemode": "tozero"}, x_axis={"dtick": 1})
