"""What is known of the figures of a version, as views take it: all of them, or how far they are, or why there are none."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from cpstream_client.contract.figures import Projection, Statistics

from ..statistics.kept import Text, Texts

_REMEMBERED = 64


@dataclass(frozen=True)
class Told:
    """statistics, projections: of each split, empty until they are ready. progress: the share that is done, while they are made.

    failure: why there will be none, or "". Projections are without their points, which a browser asks for itself.
    """

    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    projections: Mapping[str, Projection] = field(default_factory=dict)
    progress: float | None = None
    failure: str = ""

    @classmethod
    def ready(cls, texts: Mapping[str, Texts]) -> "Told":
        return cls(
            {name: _statistics(each.statistics) for name, each in texts.items()},
            {name: _projection(each.projection) for name, each in texts.items()},
        )


@lru_cache(_REMEMBERED)
def _statistics(text: Text) -> Statistics:
    return Statistics.model_validate_json(text.body)


@lru_cache(_REMEMBERED)
def _projection(text: Text) -> Projection:
    return Projection.model_validate(json.loads(text.body) | {"points": ()})
