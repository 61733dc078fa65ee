"""A source that changes under services that run, and what tests ask of them.

source(folder, seed)     a whole source: train of that seed, dev always the same -> the embeddings of train (N, D) float32, by index
reload(url)              have the service reload -> the body's last_reload, once that has ended
current(url)             the fingerprint of train that answers what pins none
Trainer(urls, seed)      a training loop that stands still after its third batch, until it may go on
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import torch
from conftest import poll
from data import make_rows, write_dataset

from cpstream_client import Client, Retry
from cpstream_client.torch import StreamingEmbeddingsDataset

N, DIM, BATCH_SIZE = 600, 32, 32
RETRY = Retry(timeout_s=120, first_delay_s=0.05, max_delay_s=0.2)


def source(folder: Path, seed: int) -> npt.NDArray[np.float32]:
    rows = make_rows(N, DIM, seed=seed)
    write_dataset(folder, {"train": rows, "dev": make_rows(5, DIM, seed=0, folder="dev")})
    return np.stack([row["embedding"] for row in rows])


def reload(url: str) -> dict[str, Any]:
    reply = httpx.post(f"{url}/v1/reload")
    assert reply.status_code == 202, reply.text
    return last_reload(url, lambda last: last["number"] >= reply.json()["number"])


def last_reload(url: str, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What /v1/versions says of the last reload, once that is the one. Another worker may hear of its end a moment later."""
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(httpx.get(f"{url}/v1/versions").json()["last_reload"] or {})  # a worker may not know yet of that at the start
        return bool(found) and is_it(found)

    poll(has_ended)
    return found


def current(url: str) -> str:
    return str(httpx.get(f"{url}/v1/splits/train").json()["fingerprint"])


class Trainer:
    """Small requests, nothing ahead: what comes after the pause was not asked for before. run() in a thread of its own."""

    def __init__(self, urls: str | list[str], seed: int) -> None:
        client = Client(urls, retry=RETRY, max_connections=1)
        client.service = replace(client.service, request_bytes=2 * BATCH_SIZE * DIM * 4)
        self.seed, self.pauses, self.go_on = seed, Event(), Event()
        self.dataset = StreamingEmbeddingsDataset(
            client,
            "train",
            batch_size=BATCH_SIZE,
            shuffle=True,
            seed=seed,
            columns=("embedding", "index"),
            prefetch_bytes=1,
            cache=None,
            rank=0,
            world_size=1,
        )

    def run(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """An epoch. Returns what came: embeddings (N, D) and indices (N,), in the order in which they came."""
        self.dataset.set_epoch(epoch)
        came = []
        for step, (embeddings, indices) in enumerate(self.dataset):
            came.append((embeddings.clone(), indices.clone()))
            if step == 2:
                self.pauses.set()
                assert self.go_on.wait(90)
        embeddings, indices = (torch.cat(parts) for parts in zip(*came, strict=True))
        return embeddings, indices

    def check(self, epoch: int, came: tuple[torch.Tensor, torch.Tensor], expected: npt.NDArray[np.float32]) -> None:
        """Raises AssertionError where an epoch is not whole, in its order and of this data."""
        order = torch.randperm(N, generator=torch.Generator().manual_seed(self.seed + epoch))
        assert torch.equal(came[1], order)
        assert torch.equal(came[0], torch.from_numpy(expected)[order])
