"""A loop that computes: a step of a small MLP for each batch, as people train regressors on embeddings."""

from collections.abc import Callable

import torch
from torch import nn


def mlp_step(dim: int, device: str = "cpu") -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A training step of an MLP dim-128-64-1 with mean squared error and Adam, for batches (B, dim) and (B,) on the device."""
    model = nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)).to(device)
    optimizer = torch.optim.Adam(model.parameters())

    def step(embeddings: torch.Tensor, cps: torch.Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(embeddings).squeeze(1), cps).backward()
        optimizer.step()

    return step
