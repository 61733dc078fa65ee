"""What the service must deliver: data made from a seed, and the order that torch gives it."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

SPLIT = "train"


class WrongBatch(Exception):
    """A batch was delivered that is not the one that was asked for."""


@dataclass(frozen=True)
class Truth:
    """embeddings (N, D) float32 and cps (N,) float32 by index."""

    embeddings: npt.NDArray[np.float32]
    cps: npt.NDArray[np.float32]

    @classmethod
    def of(cls, samples: int, dim: int) -> "Truth":
        random = np.random.default_rng(7)
        embeddings = random.standard_normal((samples, dim), dtype=np.float32)
        return cls(embeddings, (5 + random.random(samples) * 10).astype(np.float32))

    def write(self, folder: Path) -> None:
        """A source. Paths ascend with the index, so that the service's order is ours."""
        folder.mkdir(parents=True)
        rows = [{"embedding": vector, "file_path": path} for vector, path in zip(self.embeddings, self._paths, strict=True)]
        np.save(folder / "numpy_embs.npy", {SPLIT: rows}, allow_pickle=True)  # type: ignore[arg-type]
        self.write_rates(folder)

    def write_rates(self, folder: Path) -> None:
        """The table alone."""
        with (folder / f"{SPLIT}_cps.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["audio_path", "cps"])
            table.writerows(zip(self._paths, self.cps.tolist(), strict=True))

    @property
    def _paths(self) -> list[str]:
        return [f"audio/{i:08d}.wav" for i in range(len(self.cps))]

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """Of an epoch, as torch's DistributedSampler has it in one process."""
        return torch.randperm(len(self.cps), generator=torch.Generator().manual_seed(seed + epoch)).numpy()

    def check(self, indices: npt.NDArray[np.int64], embeddings: Any, cps: Any, where: str) -> None:
        """Compare a batch to the bit. Raises WrongBatch."""
        if not (
            np.array_equal(np.asarray(embeddings), self.embeddings[indices]) and np.array_equal(np.asarray(cps), self.cps[indices])
        ):
            raise WrongBatch(f"{where}: other numbers than those of indices {indices[:5].tolist()}...")
