"""The local twin of the service: a torch data set over the same sources, with the same samples in the same order.

The only module of the service that imports torch; the server does not import it.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsIndex, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cpstream_client.contract.bodies import AlignmentReport

from .align.splits import align_all
from .align.verdict import refuse
from .errors import DataError
from .setting_errors import SettingsError, as_arguments
from .settings import DataSettings


@contextmanager
def _for_python() -> Iterator[None]:
    """Errors that name arguments, and neither options nor variables."""
    try:
        yield
    except (DataError, SettingsError) as error:
        error.args = (as_arguments(str(error)), *error.args[1:])
        raise


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

    source_path: folder of numpy_embs.npy or of a Chroma database, or what else the source_type reads. cps_csv: the CPS table,
    {split} standing for the split; a bare file name is looked for in source_path. settings: any other option of `cpstream check`,
    by its name in Python (chroma_url=, cps_column=, strict=, ...). report: what alignment dropped, and why. extra_labels: those of
    `labels=("pitch", ...)` by name, each (N,) float32, NaN where missing.

    Raises ValueError for a setting out of its choices; DataError when something cannot be read or nothing aligns: where a file or a
    folder is missing, it is a FileNotFoundError, too.
    """

    def __init__(
        self,
        source_path: str | Path | None,
        split: str,
        source_type: str = "npy",
        cps_csv: str | Path = "{split}_cps.csv",
        collection_name: str = "speed_embeddings",
        *,
        progress: bool = True,
        **settings: Any,
    ) -> None:
        self.source_path, self.split, self.source_type = source_path, split, source_type
        self.cps_csv, self.collection_name = cps_csv, collection_name
        self._progress = progress
        with _for_python():
            self._settings = DataSettings(
                source_type=cast(Any, source_type),
                source_path=None if source_path is None else Path(source_path),
                collection_name=collection_name,
                cps_csv=str(cps_csv),
                splits=(split,),
                **settings,
            )
        self.report: AlignmentReport
        self.extra_labels: dict[str, Tensor]
        self.prepare_data()

    def prepare_data(self) -> None:
        """Read the source and the CPS table, and align them."""
        with _for_python():
            (aligned,) = align_all(self._settings, progress=self._progress)
            refuse(self._settings, [aligned.report])
        self.audio_data = torch.from_numpy(aligned.embeddings)
        self.labels = torch.from_numpy(aligned.cps)
        self.extra_labels = {name: torch.from_numpy(values) for name, values in aligned.labels.items()}
        self.filenames = aligned.file_paths
        self.report = aligned.report

    def __repr__(self) -> str:
        return f"{type(self).__name__}(split={self.split!r}, num_samples={len(self)}, embedding_dim={self.audio_data.shape[1]})"
