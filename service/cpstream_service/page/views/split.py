"""A split's page: its rates, its embeddings, what it shares with other splits, and how well a linear model does on it."""

from collections.abc import Mapping
from dataclasses import dataclass

from cpstream_client.contract.bodies import SplitInfo
from cpstream_client.contract.figures import Histogram, Shift

from ...snapshot.store import Snapshot, Split
from ...statistics.overlay import overlay
from .. import charts, words
from ..findings import MANY, against, findings, of_split
from ..render import Frame, render
from ..told import Told
from .client import Code


@dataclass(frozen=True)
class SplitSeen:
    """What the page is of. is_current: whether it is of the version that whoever pins none gets."""

    snapshot: Snapshot
    split: Split
    infos: Mapping[str, SplitInfo]
    told: Told
    client: Code
    is_current: bool = True


def page(frame: Frame, seen: SplitSeen) -> bytes:
    split, told, name = seen.split, seen.told, seen.split.name
    figures, projection = told.statistics.get(name), told.projections.get(name)
    bins = overlay({name: split.cps})
    return render(
        "split.html",
        frame,
        seen=seen,
        client=seen.client,
        name=name,
        info=seen.infos[name],
        report=split.report,
        told=told,
        figures=figures,
        projection=projection,
        findings=of_split(name, findings(seen.snapshot.reports, told.statistics)),
        reasons=words.REASONS,
        bins=bins,
        rates=charts.histogram(bins.edges, bins.counts[name], charts.RATE),
        norms=None if figures is None else _norms(figures.embeddings.norms.histogram),
        deciles=None if figures is None or figures.baseline is None else charts.deciles({name: figures.baseline.deciles}),
        notes=() if figures is None else figures.notes,
        shifts=_shifts(told, name),
        sharing=[shared for shared in figures.shared if words.shares(shared)] if figures is not None else [],
        words=words,
    )


def _shifts(told: Told, name: str) -> tuple[Shift, ...]:
    """Against each other split; of many against the training split alone."""
    figures = told.statistics.get(name)
    if figures is None or len(told.statistics) <= MANY:
        return () if figures is None else figures.shift
    return against(figures, next(iter(told.statistics)))


def _norms(found: Histogram) -> charts.Figure:
    return charts.histogram(found.edges, found.counts, "Length of the embedding")
