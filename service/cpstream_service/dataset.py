"""The local twin of the service: a torch data set over the same sources, with the same samples in the same order.

The only module of the service that imports torch; the server does not import it.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Literal, SupportsIndex

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cpstream_client.contract.bodies import AlignmentReport

from .align.splits import align_all, refuse
from .settings import DataSettings


class BaseDataset(Dataset[tuple[Tensor, Tensor]]):
    """A data set in memory. audio_data (N, D) float32, labels (N,) float32, filenames: N paths.

    A subclass fills these three in `prepare_data`.
    """

    audio_data: Tensor
    labels: Tensor
    filenames: list[str]

    @abstractmethod
    def prepare_data(self) -> None:
        """Load audio_data, labels and filenames."""

    def __len__(self) -> int:
        return len(self.filenames)

    def __getitem__(self, index: SupportsIndex) -> tuple[Tensor, Tensor]:
        """Sample `index`: embedding (D,) float32, CPS () float32. Raises IndexError."""
        return self.audio_data[index], self.labels[index]


class RegressionEmbeddingsDataset(BaseDataset):
    """Embeddings of one split with their speech rate (CPS), aligned as the service aligns them.

    source_path: folder of numpy_embs.npy, or of a Chroma database. cps_csv: the CPS table, {split} standing for the split; a bare
    file name is looked for in source_path. chroma_url and what follows: a Chroma server instead of a folder. report: what alignment
    dropped, and why. Raises DataError when something cannot be read or nothing aligns.
    """

    def __init__(
        self,
        source_path: str | Path | None,
        split: str,
        source_type: Literal["npy", "chromadb"] = "npy",
        cps_csv: str | Path = "{split}_cps.csv",
        collection_name: str = "speed_embeddings",
        *,
        chroma_url: str | None = None,
        chroma_host: str | None = None,
        chroma_port: int = 8000,
        chroma_token_file: str | Path | None = None,
        chroma_headers_file: str | Path | None = None,
        chroma_ca_file: str | Path | None = None,
        chroma_tenant: str = "default_tenant",
        chroma_database: str = "default_database",
        path_column: str = "audio_path",
        cps_column: str = "cps",
        strict: bool = False,
        progress: bool = True,
    ) -> None:
        self.split = split
        self._progress = progress
        self._settings = DataSettings(
            source_type=source_type,
            source_path=_path(source_path),
            chroma_url=chroma_url,
            chroma_host=chroma_host,
            chroma_port=chroma_port,
            chroma_token_file=_path(chroma_token_file),
            chroma_headers_file=_path(chroma_headers_file),
            chroma_ca_file=_path(chroma_ca_file),
            chroma_tenant=chroma_tenant,
            chroma_database=chroma_database,
            collection_name=collection_name,
            cps_csv=str(cps_csv),
            path_column=path_column,
            cps_column=cps_column,
            splits=(split,),
            strict=strict,
        )
        self.report: AlignmentReport
        self.prepare_data()

    def prepare_data(self) -> None:
        """Read the source and the CPS table, and align them."""
        (aligned,) = align_all(self._settings, progress=self._progress)
        refuse(self._settings, [aligned.report])
        self.audio_data = torch.from_numpy(aligned.embeddings)
        self.labels = torch.from_numpy(aligned.cps)
        self.filenames = aligned.file_paths
        self.report = aligned.report

    def __repr__(self) -> str:
        return f"{type(self).__name__}(split={self.split!r}, num_samples={len(self)}, embedding_dim={self.audio_data.shape[1]})"


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
