"""The source and the CPS tables that the settings name."""

from pathlib import Path

from ..errors import DataError
from ..settings import DataSettings
from .npy import FILE_NAME, read_npy
from .rows import SourceSplit


def read_source(settings: DataSettings, *, progress: bool = False) -> dict[str, SourceSplit]:
    """The embeddings of every split of the settings, or of all that the source holds."""
    if settings.source_type == "npy":
        return read_npy(npy_path(settings), settings.splits, progress=progress)
    from .chroma.read import read_chroma  # chromadb takes a second to import

    return read_chroma(settings, progress=progress)


def npy_path(settings: DataSettings) -> Path:
    if settings.source_path is None:
        raise DataError(f"no source path: set --source-path (CPSTREAM_SOURCE_PATH) to the folder that holds {FILE_NAME}")
    if settings.source_path.suffix == ".npy":
        return settings.source_path
    return settings.source_path / FILE_NAME


def cps_path(settings: DataSettings, split: str) -> Path:
    """The CPS table of a split. A bare file name lies in the source path, anything else is a path as given."""
    path = Path(settings.cps_csv.replace("{split}", split))
    template = Path(settings.cps_csv)
    if len(template.parts) > 1 or settings.source_path is None:
        return path
    folder = settings.source_path.parent if settings.source_path.suffix == ".npy" else settings.source_path
    return folder / path
