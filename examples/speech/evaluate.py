"""What the bundled embeddings know about speech rate, and what text length, duration or the mean alone would.

Example:
    python examples/speech/evaluate.py --data examples/speech/data

Every model is fitted on train, tuned on dev (ridge penalty, early stopping) and scored once on test: voices, voice variants
and sentences that occur in neither. The MLP needs torch and is left out without it; all else is numpy.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Splits = dict[str, Array]

SPLITS = ("train", "dev", "test")
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
MLP_SEEDS = 5


@dataclass(frozen=True)
class Data:
    """Rows aligned by path, per split: embeddings (N, D), and (N,) each of CPS, characters, seconds, words per minute."""

    embeddings: Splits
    cps: Splits
    characters: Splits
    seconds: Splits
    words_per_minute: Splits


def load(folder: Path) -> Data:
    """Read `numpy_embs.npy` and the CPS tables of `folder`, joined by path."""
    # A pickle can run code: fine for this file, which this repository made. The service reads it by an allow-list instead.
    table = np.load(folder / "numpy_embs.npy", allow_pickle=True).item()
    data = Data({}, {}, {}, {}, {})
    for split in SPLITS:
        with (folder / f"{split}_cps.csv").open(encoding="utf-8", newline="") as file:
            rows = {row["audio_path"]: row for row in csv.DictReader(file)}
        paths = [sample["file_path"] for sample in table[split]]
        data.embeddings[split] = np.stack([sample["embedding"] for sample in table[split]]).astype(np.float64)
        for column in ("cps", "characters", "seconds", "words_per_minute"):
            getattr(data, column)[split] = np.array([float(rows[path][column]) for path in paths])
    return data


def r2(truth: Array, predicted: Array) -> float:
    """The share of the variance of `truth` (N,) that `predicted` (N,) explains; below 0 is worse than the mean of `truth`."""
    return 1 - float(((truth - predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def ridge(inputs: Splits, target: Splits) -> Array:
    """Linear regression with an L2 penalty that is chosen on dev. inputs (N, D), target (N,) -> test predictions (N,)."""
    mean, std = inputs["train"].mean(axis=0), np.maximum(inputs["train"].std(axis=0), 1e-6)
    scaled = {split: (x - mean) / std for split, x in inputs.items()}
    x, offset = scaled["train"], float(target["train"].mean())
    fits: list[tuple[float, Array]] = []
    for penalty in PENALTIES:
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (target["train"] - offset))
        fits.append((r2(target["dev"], scaled["dev"] @ weights + offset), weights))
    best = max(fits, key=lambda fit: fit[0])[1]
    return scaled["test"] @ best + offset


def curve(values: Splits) -> Splits:
    """(N,) -> (N, 3): x, x squared and log x, so that one number alone may act on CPS by a curve."""
    return {split: np.stack([x, x**2, np.log(x)], axis=1) for split, x in values.items()}


def mlp(inputs: Splits, target: Splits, seed: int) -> Array:
    """One hidden layer of 128, stopped at the best dev epoch. Inputs (N, D) standardised -> test predictions (N,)."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    mean, std = float(target["train"].mean()), float(target["train"].std())
    x = {split: torch.tensor(values, dtype=torch.float32) for split, values in inputs.items()}
    y = torch.tensor((target["train"] - mean) / std, dtype=torch.float32)
    model = nn.Sequential(nn.Linear(x["train"].shape[1], 128), nn.GELU(), nn.Dropout(0.3), nn.Linear(128, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    best, predicted = -np.inf, np.empty(0)
    for _ in range(60):
        model.train()
        for batch in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x["train"][batch])[:, 0], y[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            dev, test = (model(x[split])[:, 0].double().numpy() * std + mean for split in ("dev", "test"))
        score = r2(target["dev"], dev)
        if score > best:
            best, predicted = score, test
    return predicted


def main() -> int:
    """The command line: two tables on stdout."""
    description, _, example = (__doc__ or "").partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, epilog=example, formatter_class=raw)
    default = Path(__file__).resolve().parent / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder with the data (default: data/ beside this script)")
    data = load(parser.parse_args().data)
    truth = data.cps["test"]

    def show(name: str, predictions: list[Array]) -> None:
        scores = [r2(truth, p) for p in predictions]
        error = np.mean([np.abs(truth - p).mean() for p in predictions])
        spread = f" (sd {np.std(scores):.3f} over {len(scores)} seeds)" if len(scores) > 1 else ""
        print(f"| {name} | {np.mean(scores):.3f}{spread} | {error:.2f} |")

    print("| input and model | test R2 | test MAE, characters/s |\n| --- | --- | --- |")
    show("embedding, ridge", [ridge(data.embeddings, data.cps)])
    try:
        show("embedding, MLP", [mlp(data.embeddings, data.cps, seed) for seed in range(MLP_SEEDS)])
    except ImportError:
        print("embedding, MLP: left out; install torch for it", file=sys.stderr)
    show("text length alone, curve", [ridge(curve(data.characters), data.cps)])
    show("duration alone, curve", [ridge(curve(data.seconds), data.cps)])
    show("mean of train", [np.full_like(truth, data.cps["train"].mean())])
    show("speed asked of espeak-ng (not in the embedding), curve", [ridge(curve(data.words_per_minute), data.cps)])

    print("\n| what else the embedding tells, ridge | test R2 |\n| --- | --- |")
    log_seconds = {split: np.log(seconds) for split, seconds in data.seconds.items()}
    for name, target in (("characters of the text", data.characters), ("log of the seconds of audio", log_seconds)):
        print(f"| {name} | {r2(target['test'], ridge(data.embeddings, target)):.3f} |")
    from_cps = ridge(curve(data.cps), log_seconds)
    print(f"| log of the seconds, from the true CPS instead | {r2(log_seconds['test'], from_cps):.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
