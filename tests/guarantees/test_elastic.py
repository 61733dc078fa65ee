"""Elastic resume over HTTP: another number of ranks, batch size and workers goes on in the middle of an epoch."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import Server
from oracle import FORKING, indices_of

from cpstream_client.stream.lanes import Flow
from cpstream_client.torch import StreamingEmbeddingsDataset, loader

pytestmark = FORKING


@pytest.fixture(params=["one connection", "several"])
def flows(request: pytest.FixtureRequest) -> Iterator[list[Flow]]:
    """Of the iterations over several connections, which all are that have a path that needs them."""
    if request.param == "one connection":
        yield []
        return
    found: list[Flow] = request.getfixturevalue("long_path")
    yield found
    assert max(flow.connections for flow in found) > 1


@dataclass
class Job:
    """The ranks of one run of a training, one after the other. seen: (indices, file paths) by rank and step."""

    server: Server
    world_size: int
    state: dict[str, Any] | None
    options: dict[str, Any]
    num_workers: int = 0
    seen: list[list[tuple[list[int], list[str]]]] = field(default_factory=list)

    def run(self, steps: int | None = None) -> dict[str, Any]:
        """Every rank makes so many steps, or those to the end of the epoch. Returns the state, which all must agree on."""
        states = []
        for rank in range(self.world_size):
            dataset = StreamingEmbeddingsDataset(
                self.server.url,
                "train",
                shuffle=True,
                seed=11,
                columns=("index", "file_path"),
                rank=rank,
                world_size=self.world_size,
                **self.options,
            )
            batches = loader(dataset, num_workers=self.num_workers)
            if self.state is not None:
                batches.load_state_dict(self.state)
            self.seen.append([])
            for index, paths in batches:
                self.seen[rank].append((index.tolist(), paths))
                if len(self.seen[rank]) == steps:
                    break
            states.append(batches.state_dict())
        assert all(state == states[0] for state in states)
        assert len({len(batches) for batches in self.seen}) == 1
        return states[0]

    @property
    def indices(self) -> list[int]:
        """In the order in which the ranks together consumed them."""
        ranks = [[index for indices, _ in batches for index in indices] for batches in self.seen]
        return [rank[at] for at in range(max(map(len, ranks))) for rank in ranks if at < len(rank)]

    @property
    def paths(self) -> list[str]:
        return [path for batches in self.seen for _, paths in batches for path in paths]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("remainder", "padding"), [("exact", 0), ("pad", 2)])
def test_two_ranks_stop_at_step_7_and_three_resume(
    server: Server, flows: list[Flow], remainder: str, padding: int, num_workers: int
) -> None:
    two = Job(server, 2, None, {"batch_size": 64, "remainder": remainder}, num_workers)
    state = two.run(steps=7)
    assert state["start"] == 2 * 7 * 64
    three = Job(server, 3, state, {"batch_size": 50, "remainder": remainder}, 2 - num_workers)
    assert three.run()["epoch"] == 1

    # 904 samples are left for three ranks, so "pad" repeats the first two of the epoch.
    split = Counter(server.snapshot.splits["train"].file_paths.to_pylist())
    seen = Counter(two.paths + three.paths)
    assert seen.keys() == split.keys()
    assert (seen - split).total() == padding
    (order,) = indices_of(1800, batch_size=1800, seed=11)
    assert two.indices + three.indices == order + order[:padding]


def test_an_epoch_in_many_pieces(server: Server) -> None:
    state, seen = None, []
    pieces = [(4, 10, 3), (1, 100, 2), (7, 3, 9), (2, 256, 1), (5, 17, None)]  # ranks, batch size, steps
    for world_size, batch_size, steps in pieces:
        job = Job(server, world_size, state, {"batch_size": batch_size, "remainder": "exact"})
        state = job.run(steps)
        seen += job.indices
    (order,) = indices_of(1800, batch_size=1800, seed=11)
    assert seen == order
    assert state is not None
    assert (state["epoch"], state["start"]) == (1, 0)


def test_drop_leaves_out_less_than_a_sample_a_rank(server: Server) -> None:
    two = Job(server, 2, None, {"batch_size": 64, "remainder": "drop"})
    three = Job(server, 3, two.run(steps=7), {"batch_size": 64, "remainder": "drop"})
    three.run()
    (order,) = indices_of(1800, batch_size=1800, seed=11)
    assert two.indices + three.indices == order[:1799]  # of the 904 left, three ranks take 903
