"""The samples that every side reads, and their checksum."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SPLIT = "train"
_BASE_ROWS = 10_000


@dataclass(frozen=True, eq=False)
class Data:
    """One split. folder: numpy_embs.npy and its CPS table, as the service reads them; embeddings (N, D), cps (N,) float32."""

    folder: Path
    embeddings: npt.NDArray[np.float32]
    cps: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.cps)

    @cached_property
    def _checksums(self) -> dict[tuple[int, str], int]:
        return {}

    def checksum(self, samples: int | None = None, dtype: str = "float32") -> int:
        """Of the first samples, all by default, as `dtype`."""
        n = len(self) if samples is None else samples
        if (n, dtype) not in self._checksums:
            pieces = (slice(low, min(low + 4096, n)) for low in range(0, n, 4096))
            total = sum(checksum(self.embeddings[piece].astype(dtype), self.cps[piece]) for piece in pieces)
            self._checksums[n, dtype] = total % 2**64
        return self._checksums[n, dtype]


def checksum(embeddings: npt.NDArray[Any], cps: npt.NDArray[Any]) -> int:
    """Sum over the samples of (sum of the embedding's bits) x (bits of its CPS), mod 2**64: the same in whatever order they come.

    embeddings (B, D) float32 or float16, cps (B,) float32.
    """
    bits = np.ascontiguousarray(embeddings).view(f"u{embeddings.itemsize}").sum(axis=1, dtype=np.uint64)
    weights = np.ascontiguousarray(cps).view(np.uint32).astype(np.uint64)
    return int((bits * weights).sum(dtype=np.uint64))


def make_data(folder: Path, samples: int, dim: int, *, as_lists: bool = False) -> Data:
    """Write a source of `samples` x `dim`. as_lists: embeddings as lists of Python floats, not arrays."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    embeddings = np.empty((samples, dim), np.float32)
    base = rng.standard_normal((min(samples, _BASE_ROWS), dim), dtype=np.float32)
    for low in range(0, samples, _BASE_ROWS):  # drawing every number anew would take longer than some measurements
        part = embeddings[low : low + _BASE_ROWS]
        np.multiply(base[: len(part)], np.float32(1 + low / samples), out=part)
    cps = rng.uniform(5, 25, samples).astype(np.float32)
    file_paths = [f"audio/{i:08d}.wav" for i in range(samples)]  # in order, so that index i is row i
    rows = embeddings.tolist() if as_lists else embeddings
    content = [{"embedding": row, "file_path": path} for row, path in zip(rows, file_paths, strict=True)]
    np.save(folder / "numpy_embs.npy", {SPLIT: content}, allow_pickle=True)  # type: ignore[arg-type]
    with (folder / f"{SPLIT}_cps.csv").open("w") as file:
        file.write("audio_path,cps\n")
        file.writelines(f"{path},{float(value)!r}\n" for path, value in zip(file_paths, cps, strict=True))
    return Data(folder, embeddings, cps)
