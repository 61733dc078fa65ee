"""Content hashes: of a split (rows, labels, paths), of the dataset, of a source file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from blake3 import blake3

from ..sources.rows import rows_per_chunk

MAPPED_CHUNK_BYTES = 64 << 20
"""What is hashed at a time where it lies, by all cores."""
HEX_DIGITS = 32


def split_fingerprint(
    shape: tuple[int, int],
    embeddings: Iterable[npt.NDArray[Any]],
    cps: npt.NDArray[np.float32],
    file_paths: pa.StringArray,
    labels: Mapping[str, npt.NDArray[np.float32]] = MappingProxyType({}),
    *,
    max_threads: int = blake3.AUTO,
) -> str:
    """Hash of a split: its shape, embeddings in order as little-endian float32, cps likewise, paths, labels.

    embeddings: the (N, D) array in pieces; file_paths: N strings whose offsets start at 0. max_threads: several earn nothing on
    pieces of a few megabytes.
    """
    digest = blake3(max_threads=max_threads)
    digest.update(np.array(shape, "<i8").tobytes())
    for piece in embeddings:
        digest.update(_bytes(piece))
    digest.update(_bytes(np.ascontiguousarray(cps, "<f4")))
    _, offsets, data = file_paths.buffers()
    bounds = np.frombuffer(offsets, "<i4", len(file_paths) + 1) if len(file_paths) else np.zeros(1, "<i4")
    digest.update(_bytes(bounds))
    if bounds[-1]:
        digest.update(memoryview(data)[: bounds[-1]])
    for name, values in sorted(labels.items()):
        digest.update(f"{len(name)}:{name}=".encode())
        digest.update(_bytes(np.ascontiguousarray(values, "<f4")))
    return digest.hexdigest()[:HEX_DIGITS]


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def pieces(embeddings: npt.NDArray[np.float32]) -> Iterable[npt.NDArray[np.float32]]:
    """A C-contiguous (N, D) array in runs of whole rows of about MAPPED_CHUNK_BYTES."""
    rows = rows_per_chunk(embeddings.shape[1], MAPPED_CHUNK_BYTES)
    for low in range(0, len(embeddings), rows):
        yield embeddings[low : low + rows]


def dataset_fingerprint(splits: Mapping[str, str]) -> str:
    """Hash of a dataset, from the fingerprints of its splits by name."""
    digest = blake3()
    for name, fingerprint in sorted(splits.items()):
        digest.update(f"{len(name)}:{name}={fingerprint};".encode())
    return digest.hexdigest()[:HEX_DIGITS]


def file_hash(path: Path) -> str:
    """Hash of a file's bytes. Raises OSError."""
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()[:HEX_DIGITS]
