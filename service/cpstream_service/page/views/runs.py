"""Runs of models that were published for a split: side by side, and one of them."""

from collections.abc import Sequence
from urllib.parse import quote

from cpstream_client.contract.bodies import SplitInfo
from cpstream_client.contract.figures import Baseline
from cpstream_client.contract.predictions import Run, RunPoints, RunReport, Unmatched

from .. import charts
from ..pinned import Pin
from ..render import Frame, render
from .client import literal

FOLDERS_SHOWN, WORST_SHOWN = 20, 15


def page(frame: Frame, split: SplitInfo, pin: Pin, url: str, runs: Sequence[Run] | None, baseline: Baseline | None) -> bytes:
    """runs: None where the service keeps none. url: of the service, as whoever looks reached it."""
    return render(
        "runs.html",
        frame,
        split=split,
        pin=pin,
        url=url,
        runs=runs,
        baseline=baseline,
        python=_python(url, split.split),
        curl=_curl(url, split.split),
    )


def one_page(frame: Frame, pin: Pin, report: RunReport, points: RunPoints, baseline: Baseline | None) -> bytes:
    lines = {report.name: report.deciles} | ({} if baseline is None else {"a linear model": baseline.deciles})
    return render(
        "run.html",
        frame,
        pin=pin,
        report=report,
        baseline=baseline,
        points=len(points.index),
        first=WORST_SHOWN,
        scatter=scatter(points, pin),
        deciles=charts.deciles(lines),
        unmatched=unmatched(report),
        folders=report.folders[:FOLDERS_SHOWN],
    )


def _python(url: str, split: str) -> str:
    return f"""\
from cpstream_client import Client

with Client("{url}") as client:
    client.publish({literal(split)}, "my-run", frame)  # of pandas, or a dict of columns"""


def _curl(url: str, split: str) -> str:
    address = f"{url}/v1/splits/{quote(split, safe='')}/predictions/my-run"
    return f"curl -X PUT '{address}' -H 'Content-Type: text/csv' --data-binary @predictions.csv"


def scatter(points: RunPoints, pin: Pin) -> charts.Figure:
    """Each sample, and the line where the prediction is the rate. customdata: indices, whose pages a click opens."""
    ends = [min(points.cps), max(points.cps)]
    samples = {
        "type": "scatter",
        "mode": "markers",
        "name": "recordings",
        "x": [round(cps, 3) for cps in points.cps],
        "y": [round(predicted, 3) for predicted in points.predicted],
        "customdata": [[index] for index in points.index],
        "hovertemplate": "index %{customdata[0]}: %{x:.2f}, predicted %{y:.2f}<extra></extra>",
        "marker": {"size": 5, "opacity": 0.6},
    }
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "prediction = rate",
        "guide": True,
        "x": ends,
        "y": ends,
        "hoverinfo": "skip",
        "line": {"dash": "dot", "width": 1.5},
    }
    drawn = charts.figure([samples, line], charts.RATE, "Predicted", showlegend=False)
    if not pin.is_current:  # where these indices are other recordings
        return drawn
    return drawn | {"opens": f"page/splits/{quote(points.split, safe='')}/samples/"}


def unmatched(run: Run) -> list[tuple[str, Unmatched]]:
    """What counts for nothing, in words; without what there is none of."""
    found = (
        ("recordings of the split have no prediction", run.missing),
        ("rows name no recording of the split", run.unknown),
        ("recordings have several different predictions, of which none counts", run.conflicting),
        ("rows have a prediction that is no finite number", run.not_finite),
    )
    return [(words, said) for words, said in found if said.count]
