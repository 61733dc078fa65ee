"""Where in a trained network is the speech rate? A ridge probe of CPS on the activations of every layer.

Three passes: over train, to sum what ridge regression needs; over dev, to choose its strength; over test, to report. No activation
is kept, so a split may be of any size. As a control, the same is done to a network of the same shape that has learned nothing.
"""

import copy
import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cyclopts
import torch
from cyclopts import Parameter
from model import Score, SpeechRateMLP
from ranks import write_atomically
from rich.console import Console
from rich.table import Table
from samples import DataOptions, Samples, open_samples
from torch import Tensor, nn
from tqdm import tqdm

from cpstream_client import CpstreamError
from cpstream_service.errors import DataError

STRENGTHS = tuple(10 ** (power / 2) for power in range(-12, 3))  # of the penalty, where every activation has unit variance
Probe = tuple[Tensor, Tensor]  # weights (width, len(STRENGTHS)) and intercepts (len(STRENGTHS),), float64


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """What is probed."""

    checkpoint: Path = Path("runs/speech-rate/checkpoint.pt")
    """Checkpoint that train_model.py wrote."""
    out: Path | None = None
    """Folder for probing.csv and probing.png; that of the checkpoint if not given."""
    split: str = "test"
    """Split on which the probes are scored."""


_PROBE, _DATA = ProbeOptions(), DataOptions()
app = cyclopts.App(name="acts_probing.py", help_format="markdown", default_parameter=Parameter(negative=()))


@app.default
def main(
    *,
    options: Annotated[ProbeOptions, Parameter(name="*", group="Probing")] = _PROBE,
    data: Annotated[DataOptions, Parameter(name="*", group="Data")] = _DATA,
) -> int:
    """Fit a ridge probe of the speech rate on the activations of each hidden layer, and report R2 and MAE by layer.

    Layer 0 is the embedding itself; "output" is what the network predicts, without a probe.

    **Examples**

    ```
    python examples/acts_probing.py --checkpoint runs/speech-rate/checkpoint.pt --url http://localhost:8000
    python examples/acts_probing.py --local --source-path examples/speech/data
    ```
    """
    if not options.checkpoint.exists():
        raise ValueError(
            f"{options.checkpoint} does not exist; write one with examples/train_model.py, or name another by --checkpoint"
        )
    samples = open_samples(data)
    trained = SpeechRateMLP.from_checkpoint(options.checkpoint)
    rows = probe("trained", trained, samples, options.split)
    rows += probe("untrained", forgetful(trained), samples, options.split)

    out = options.out or options.checkpoint.parent
    out.mkdir(parents=True, exist_ok=True)
    report(rows, options.split, out)
    return 0


@dataclass(frozen=True)
class Row:
    """How well CPS can be read from a layer."""

    network: str
    layer: str
    width: int
    strength: float | None  # of the penalty; None where there is no probe
    dev_r2: float
    r2: float
    mae: float  # characters per second


def probe(network: str, model: SpeechRateMLP, samples: Samples, split: str) -> list[Row]:
    """Probe the embedding, every hidden layer and the output of a network: a Row each."""
    # Hooks keep what every layer gave in the last forward pass.
    seen: dict[str, Tensor] = {}
    for number, layer in enumerate(model.layers, 1):
        layer.register_forward_hook(lambda _layer, _inputs, output, name=f"hidden {number}": seen.update({name: output}))

    def batches(of: str) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Activations by layer, (B, width) float64 each; the network's own prediction (B,); CPS (B,)."""
        for embeddings, cps, _ in tqdm(samples.batches(of), f"{network}, {of}", unit=" batches", leave=False, disable=None):
            predicted = model.predict(embeddings)
            yield {"embedding": embeddings.double()} | {name: x.double() for name, x in seen.items()}, predicted, cps.double()

    products: dict[str, Tensor] = {}
    for layers, _, cps in batches("train"):
        for name, x in layers.items():
            columns = torch.cat([torch.ones(len(x), 1), cps[:, None], x], dim=1)  # (B, 2 + width)
            products[name] = products.get(name, torch.zeros(())) + columns.T @ columns
    probes = {name: fit_ridge(sums) for name, sums in products.items()}

    dev = {name: [Score() for _ in STRENGTHS] for name in probes}
    dev_own = Score()
    for layers, predicted, cps in batches("dev"):
        dev_own.add(cps, predicted)
        for name, (weights, intercepts) in probes.items():
            for score, column in zip(dev[name], (layers[name] @ weights + intercepts).T, strict=True):
                score.add(cps, column)
    best = {name: max(range(len(STRENGTHS)), key=[score.r2 for score in scores].__getitem__) for name, scores in dev.items()}

    test = {name: Score() for name in probes}
    test_own = Score()
    for layers, predicted, cps in batches(split):
        test_own.add(cps, predicted)
        for name, (weights, intercepts) in probes.items():
            test[name].add(cps, layers[name] @ weights[:, best[name]] + intercepts[best[name]])

    rows = [
        Row(network, name, len(weights), STRENGTHS[best[name]], dev[name][best[name]].r2, test[name].r2, test[name].mae)
        for name, (weights, _) in probes.items()
    ]
    return [*rows, Row(network, "output", 1, None, dev_own.r2, test_own.r2, test_own.mae)]


def fit_ridge(products: Tensor) -> Probe:
    """Ridge regression in closed form, for every strength. products: columns.T @ columns of one, CPS and activations."""
    means = products[0] / products[0, 0]  # (2 + width,): one, CPS, activations
    covariance = products / products[0, 0] - torch.outer(means, means)
    std = covariance.diagonal()[2:].clamp_min(0).sqrt()
    std = std.clamp_min(max(0.01 * float(std.median()), 1e-9))  # a unit that hardly varies on train must not be blown up
    correlation = covariance[2:, 2:] / torch.outer(std, std)
    wanted = covariance[2:, 1] / std
    solutions = [torch.linalg.solve(correlation + strength * torch.eye(len(std)), wanted) / std for strength in STRENGTHS]
    weights = torch.stack(solutions, dim=1)  # (width, len(STRENGTHS))
    return weights, means[1] - means[2:] @ weights


def forgetful(model: SpeechRateMLP) -> SpeechRateMLP:
    """A network of the same shape with fresh weights."""
    fresh = copy.deepcopy(model)
    torch.manual_seed(0)
    for module in fresh.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return fresh


def report(rows: list[Row], split: str, out: Path) -> None:
    """A table on the terminal, probing.csv and probing.png."""
    from plots import plot_probes

    table = Table("network", "layer", title=f"Speech rate in the activations, {split} split")
    for heading in ("width", "ridge", "dev R²", f"{split} R²", f"{split} MAE"):
        table.add_column(heading, justify="right")
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["network", "layer", "width", "ridge", "dev_r2", f"{split}_r2", f"{split}_mae"])
    for row in rows:
        strength = "" if row.strength is None else f"{row.strength:.1e}"
        figures = [f"{row.dev_r2:.4f}", f"{row.r2:.4f}", f"{row.mae:.3f}"]
        table.add_row(row.network, row.layer, str(row.width), strength, *figures, end_section=row.layer == "output")
        writer.writerow([row.network, row.layer, row.width, strength, *figures])
    Console().print(table)
    write_atomically(out / "probing.csv", lines.getvalue().encode())

    probed = [row for row in rows if row.layer != "output"]
    curves = {name: [row.r2 for row in probed if row.network == name] for name in ("trained", "untrained")}
    labels = [f"{row.layer}\n({row.width})" for row in probed if row.network == "trained"]
    own = next(row.r2 for row in rows if row.layer == "output")
    plot_probes(labels, curves, own, split, out / "probing.png")
    print(f"probing.csv and probing.png are in {out}")


if __name__ == "__main__":
    try:
        app()
    except (CpstreamError, DataError, ValueError) as error:
        sys.exit(f"acts_probing.py: {error}")
