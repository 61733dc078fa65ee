"""Lightning: a Trainer that was stopped goes on from its own checkpoint, with no hook of ours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from oracle import FORKING, indices_of
from torch.utils.data import Sampler

from cpstream_client import CpstreamError
from cpstream_client.torch import StreamingEmbeddingsDataset, loader

pytestmark = [
    *FORKING,
    pytest.mark.filterwarnings(
        # Lightning 2.6 asks torch's _pytree for LeafSpec, which torch 2.13 deprecates.
        r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
        # Lightning warns of every iterable dataset that has a length: its workers might not share the work. These do.
        "ignore:Your `IterableDataset` has `__len__` defined:UserWarning",
        # Lightning advises more workers, whatever the loader does in the background.
        "ignore:The 'train_dataloader' does not have many workers:UserWarning",
    ),
]
STEPS = 29


def expected(epoch: int) -> list[list[int]]:
    return indices_of(1800, batch_size=64, seed=7, epoch=epoch)


class Recorder(LightningModule):
    """A regressor that remembers which samples it was trained on. Stops the run as a crash would after so many steps in all."""

    def __init__(self, dim: int, crash_after: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(dim, 1)
        self.seen: list[list[int]] = []
        self.crash_after = crash_after

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        embeddings, cps, index = batch
        self.seen.append(index.tolist())
        return torch.nn.functional.mse_loss(self.layer(embeddings).squeeze(1), cps)

    def on_train_batch_end(self, *_: Any) -> None:
        if len(self.seen) == self.crash_after:
            raise ConnectionAbortedError("a crash")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-9)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_resumes_from_its_own_checkpoint(server: Server, tmp_path: Path, num_workers: int) -> None:
    dim = server.snapshot.splits["train"].info.embedding_dim

    def fit(crash_after: int | None = None, **options: Any) -> Recorder:
        torch.manual_seed(0)
        module = Recorder(dim, crash_after)
        save_top_k = -1 if crash_after else 0  # all, or none
        saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=save_top_k)
        trainer = Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[saving],
        )
        # No hook of ours: Lightning announces the epoch and keeps the state by itself.
        train = loader(
            StreamingEmbeddingsDataset(
                server.url, "train", batch_size=64, shuffle=True, seed=7, columns=("embedding", "cps", "index")
            ),
            num_workers=num_workers,
        )
        trainer.fit(module, train, **options)
        return module

    whole = fit()
    assert whole.seen == expected(0) + expected(1) + expected(2)
    with pytest.raises(ConnectionAbortedError):
        fit(crash_after=STEPS + 14)
    for step in (10, STEPS, STEPS + 11):  # in the middle of an epoch, at its end, in the middle of the next
        resumed = fit(ckpt_path=tmp_path / f"step={step}.ckpt")
        assert resumed.seen == whole.seen[step:]
        assert torch.equal(resumed.layer.weight, whole.layer.weight)


class Drawn(Sampler[int]):
    """Without length."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)

    def __iter__(self) -> Iterator[int]:
        yield from self.rng.integers(0, 1800, 640)


class Long(Drawn):
    def __len__(self) -> int:
        return 640


def sampled(server: Server, sampler: Drawn, saving: ModelCheckpoint, crash_after: int | None = None, **options: Any) -> Recorder:
    torch.manual_seed(0)
    module = Recorder(server.snapshot.splits["train"].info.embedding_dim, crash_after)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[saving]
    )
    dataset = StreamingEmbeddingsDataset(server.url, "train", columns=("embedding", "cps", "index"))
    trainer.fit(module, loader(dataset, sampler=sampler, batch_size=64), **options)
    return module


def test_lightning_resumes_with_a_sampler(server: Server, tmp_path: Path) -> None:
    def saving(save_top_k: int = 0) -> ModelCheckpoint:
        return ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=save_top_k)

    whole = sampled(server, Long(), saving())
    rng = np.random.default_rng(1)
    assert whole.seen == [batch.tolist() for _ in range(2) for batch in rng.integers(0, 1800, 640).reshape(10, 64)]
    with pytest.raises(ConnectionAbortedError):
        sampled(server, Long(), saving(-1), crash_after=14)
    for step in (4, 13):
        resumed = sampled(server, Long(), saving(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert resumed.seen == whole.seen[step:]
    with pytest.warns(UserWarning, match="epoch 1 was chosen, and Long knows nothing of epochs"):  # a checkpoint without its state
        sampled(server, Long(), saving(), ckpt_path=tmp_path / "step=10.ckpt")


def test_lightning_takes_a_batch_ahead_of_a_sampler_without_length(server: Server, tmp_path: Path) -> None:
    """So that a state in mid-epoch would lose it."""
    often = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1)
    with pytest.raises(CpstreamError, match=r"Lightning takes a batch ahead of the loop .*: give Drawn a __len__"):
        sampled(server, Drawn(), often)
