"""inverse_density_weights against the formula of label distribution smoothing, written out sample by sample."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import WeightedRandomSampler

from cpstream_client.torch import StreamingEmbeddingsDataset, inverse_density_weights, loader


def kernel_at(kernel: str, distance: float, sigma: float) -> float:
    if kernel == "gaussian":
        return math.exp(-(distance**2) / (2 * sigma**2))
    if kernel == "laplace":
        return math.exp(-abs(distance) / (sigma / math.sqrt(2)))
    return max(0.0, 1 - abs(distance) / (math.sqrt(6) * sigma))


def written_out(cps: list[float], bins: int, sigma: float, kernel: str, power: float) -> list[float]:
    low, high = min(cps), max(cps)
    of = [0 if high == low else min(int((value - low) / ((high - low) / bins)), bins - 1) for value in cps]
    reach = math.ceil(4 * sigma)
    weights = []
    for mine in of:
        density = sum(kernel_at(kernel, mine - other, sigma) for other in of if abs(mine - other) <= reach)
        weights.append(density**-power)
    mean = sum(weights) / len(weights)
    return [weight / mean for weight in weights]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    cps=st.lists(st.floats(0.5, 50, width=32), min_size=1, max_size=60),
    bins=st.integers(1, 150),
    sigma=st.floats(0.3, 12),
    kernel=st.sampled_from(["gaussian", "triangle", "laplace"]),
    power=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_weights_are_those_of_the_formula(cps: list[float], bins: int, sigma: float, kernel: Any, power: float) -> None:
    weights = inverse_density_weights(np.array(cps), bins=bins, sigma=sigma, kernel=kernel, power=power)
    assert weights.dtype == torch.float64
    assert np.allclose(weights, written_out(cps, bins, sigma, kernel, power), rtol=1e-9)


def test_rare_rates_weigh_more_and_become_as_frequent(server: Server) -> None:
    dataset: Any = StreamingEmbeddingsDataset(server.url, "train", columns=("cps",))
    rates = np.array(server.snapshot.splits["train"].cps)
    weights = inverse_density_weights(torch.from_numpy(rates))
    assert weights.mean().item() == pytest.approx(1)
    edges = np.linspace(rates.min(), rates.max(), 11)
    usual = np.histogram(rates, edges)[0]
    assert weights[rates > edges[9]].mean() > 3 * weights[(rates > edges[2]) & (rates < edges[4])].mean()
    sampler = WeightedRandomSampler(weights, 20_000, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    drawn = np.concatenate([cps.numpy() for (cps,) in loader(dataset, sampler=sampler, batch_size=500)])
    evened = np.histogram(drawn, edges)[0]
    assert evened.min() / evened.max() > 5 * usual.min() / usual.max()


def test_what_has_no_label_weighs_nothing() -> None:
    assert inverse_density_weights([math.nan, 1.0, 2.0]).tolist()[0] == 0
    assert inverse_density_weights([math.nan]).tolist() == [0]
    assert inverse_density_weights([]).tolist() == []
    assert inverse_density_weights([3.0, 3.0]).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"bins": 0}, "bins is 0"),
        ({"sigma": 0.0}, "sigma is 0"),
        ({"power": -1}, "power is -1"),
        ({"kernel": "box"}, "kernel is 'box'"),
    ],
)
def test_what_is_out_of_range(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        inverse_density_weights([1.0, 2.0], **wrong)
    with pytest.raises(ValueError, match="cps has inf"):
        inverse_density_weights([1.0, math.inf])
