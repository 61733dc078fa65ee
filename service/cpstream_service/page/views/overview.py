"""The first page: what is served, what is odd about it, how fast its speech is, and whether the embeddings carry that."""

from collections.abc import Mapping
from dataclasses import dataclass

from cpstream_client.contract.bodies import SplitInfo
from cpstream_client.contract.figures import Shift

from ...snapshot.store import Snapshot
from ...statistics.overlay import overlay
from .. import charts, words
from ..findings import MANY, against, findings
from ..render import Frame, render
from ..told import Told
from .client import Code
from .live import Now


@dataclass(frozen=True)
class Overview:
    """What the page is of. stale: why the data may be older than its source, or ""; reload_error: why the last reload failed.

    client: the code that reads the training split. runs: how many each split has, where there are any.
    """

    snapshot: Snapshot
    infos: Mapping[str, SplitInfo]
    told: Told
    client: Code
    now: Now
    runs: Mapping[str, int]
    stale: str = ""
    reload_error: str = ""


def page(frame: Frame, seen: Overview) -> bytes:
    splits, told = seen.snapshot.splits, seen.told
    bins = overlay({name: split.cps for name, split in splits.items()})
    baselines = {name: each.baseline for name, each in told.statistics.items() if each.baseline is not None}
    return render(
        "overview.html",
        frame,
        seen=seen,
        client=seen.client,
        now=seen.now,
        runs=seen.runs,
        infos=seen.infos,
        reports=seen.snapshot.reports,
        told=told,
        total=sum(info.num_samples for info in seen.infos.values()),
        sources=list(dict.fromkeys(info.source for info in seen.infos.values())),
        definitions=list(dict.fromkeys(info.cps_definition for info in seen.infos.values() if info.cps_definition)),
        findings=findings(seen.snapshot.reports, told.statistics),
        reasons=words.REASONS,
        bins=bins,
        rates=charts.rates(bins),
        shifts=_shifts(told),
        baselines=baselines,
        deciles=charts.deciles({name: baseline.deciles for name, baseline in baselines.items()}),
        verdict=words.verdict(told.statistics),
        no_baseline=_no_baseline(told),
        words=words,
    )


def _shifts(told: Told) -> list[tuple[str, Shift]]:
    """Each pair of splits once, a later one against an earlier one; of many splits each against the training split alone."""
    names = list(told.statistics)
    if len(names) > MANY:
        return [(name, shift) for name in names for shift in against(told.statistics[name], names[0])]
    return [(name, shift) for at, name in enumerate(names) for shift in told.statistics[name].shift if shift.split in names[:at]]


def _no_baseline(told: Told) -> tuple[str, ...]:
    """Why there is none, each reason once."""
    notes = (note for each in told.statistics.values() for note in each.notes if note.startswith("no baseline"))
    return tuple(dict.fromkeys(notes))
