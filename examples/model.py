"""The model of the examples, and how its predictions are scored."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class SpeechRateMLP(nn.Module):
    """Embeddings (B, D) -> speech rate (B,). It standardises its input itself, so that a checkpoint is all one needs.

    `forward` gives the rate in standard deviations from train's mean, which is what the loss sees; `predict` gives characters
    per second.
    """

    embedding_mean: Tensor
    embedding_std: Tensor
    cps_mean: Tensor
    cps_std: Tensor

    def __init__(self, dim: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        widths = [dim, *hidden]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout)) for before, after in pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], 1)
        self.register_buffer("embedding_mean", torch.zeros(dim))
        self.register_buffer("embedding_std", torch.ones(dim))
        self.register_buffer("cps_mean", torch.zeros(()))
        self.register_buffer("cps_std", torch.ones(()))

    def forward(self, embeddings: Tensor) -> Tensor:
        x = (embeddings - self.embedding_mean) / self.embedding_std  # (B, D)
        for layer in self.layers:
            x = layer(x)
        return self.head(x).squeeze(-1)  # type: ignore[no-any-return]  # (B,)

    def standardise(self, cps: Tensor) -> Tensor:
        """Characters per second (B,) -> what `forward` should give."""
        return (cps - self.cps_mean) / self.cps_std

    def standardise_by(self, mean: Tensor, std: Tensor) -> None:
        """Both (1 + D,): of CPS, then of every dimension of the embedding."""
        self.cps_mean.copy_(mean[0])
        self.cps_std.copy_(std[0].clamp_min(1e-6))
        self.embedding_mean.copy_(mean[1:])
        # A dimension that hardly varies on train would be blown up by what an unseen voice brings: floor it.
        self.embedding_std.copy_(std[1:].clamp_min(max(0.05 * float(std[1:].median()), 1e-6)))

    @torch.no_grad()
    def predict(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, D) -> characters per second (B,). Wants eval mode."""
        return self(embeddings) * self.cps_std + self.cps_mean  # type: ignore[no-any-return]

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str = "cpu") -> "SpeechRateMLP":
        """The model of a checkpoint that train_model.py wrote, ready to predict."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        dim = len(checkpoint["model"]["embedding_mean"])
        model = cls(dim, checkpoint["options"]["hidden"], checkpoint["options"]["dropout"])
        model.load_state_dict(checkpoint["model"])
        return model.to(device).eval()


class Moments:
    """Mean and standard deviation of embeddings and CPS, summed in float64, so that batches and ranks add up.

    sums: count, CPS, CPS squared, embeddings (D,), embeddings squared (D,).
    """

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor, list[str]]]) -> None:
        self.sums = torch.stack([_moments(embeddings.double(), cps.double()) for embeddings, cps, _ in batches]).sum(0)

    @property
    def embedding_dim(self) -> int:
        return (len(self.sums) - 3) // 2

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Of CPS and every dimension of the embedding. Both (1 + D,) float64."""
        n, cps, cps_squared = torch.split(self.sums[:3], 1)
        embedding, embedding_squared = self.sums[3:].chunk(2)
        mean = torch.cat([cps, embedding]) / n
        return mean, (torch.cat([cps_squared, embedding_squared]) / n - mean**2).clamp_min(0).sqrt()


def _moments(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([torch.tensor([len(y), y.sum(), (y * y).sum()], dtype=torch.float64), x.sum(0), (x * x).sum(0)])


class Score:
    """R2 and mean absolute error as sums over samples, so that batches and ranks add up."""

    def __init__(self) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64)  # count, truth, truth squared, |error|, error squared

    def add(self, truth: Tensor, predicted: Tensor) -> None:
        """Both (B,), in characters per second."""
        truth, predicted = truth.double().cpu(), predicted.double().cpu()
        error = predicted - truth
        sums = [torch.tensor(float(len(truth))), truth.sum(), (truth**2).sum(), error.abs().sum(), (error**2).sum()]
        self.sums += torch.stack([value.double() for value in sums])

    @property
    def n(self) -> int:
        return int(self.sums[0])

    @property
    def r2(self) -> float:
        """The share of the variance of the truth that the predictions explain; below 0 is worse than its mean."""
        n, truth, truth_squared, _, error_squared = self.sums.tolist()
        variance = truth_squared - truth**2 / n
        return 1 - error_squared / variance if variance > 0 else math.nan

    @property
    def mae(self) -> float:
        """Mean absolute error, characters per second."""
        return float(self.sums[3] / self.sums[0])
