"""The embeddings and the CPS tables that the settings name: each kind of source by its own module."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError
from ..settings import DataSettings
from ..text import listed
from .npy import FILE_NAME, read_npy, reading_npy
from .places import places
from .rows import ALL, SourceSplit


@dataclass(frozen=True)
class Kind:
    """A kind of source that lies in files. what: what its path names, for messages.

    read(path, splits, columns, progress): the splits at one path; files(path): what they are read from; fits(path): whether a path
    may be one, to tell splits from what lies beside them.
    """

    what: str
    read: Callable[[Path, Sequence[str], Sequence[str], bool], dict[str, SourceSplit]]
    files: Callable[[Path], list[Path]]
    fits: Callable[[Path], bool]


def _is_folder_or(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix in suffixes or path.is_dir()


def _npy() -> Kind:
    def read(path: Path, splits: Sequence[str], columns: Sequence[str], progress: bool) -> dict[str, SourceSplit]:
        return read_npy(npy_file(path), splits, columns, progress=progress)

    def fits(path: Path) -> bool:
        return path.suffix == ".npy" or (path / FILE_NAME).is_file()

    return Kind(f"the folder that holds {FILE_NAME}", read, lambda path: [npy_file(path)], fits)


def _npy_folder() -> Kind:
    from .npy_folder import WHAT, npy_folder_files, read_npy_folder

    return Kind(
        WHAT, lambda path, splits, columns, progress: read_npy_folder(path, progress=progress), npy_folder_files, Path.is_dir
    )


def _parquet() -> Kind:
    from .parquet import WHAT, parquet_files, read_parquet

    return Kind(
        WHAT,
        lambda path, splits, columns, progress: read_parquet(path, columns, progress=progress),
        parquet_files,
        _is_folder_or(".parquet"),
    )


def _kaldi() -> Kind:
    from .kaldi import WHAT, kaldi_files, read_kaldi

    return Kind(
        WHAT,
        lambda path, splits, columns, progress: read_kaldi(path, progress=progress),
        kaldi_files,
        _is_folder_or(".scp", ".ark"),
    )


_KINDS: dict[str, Callable[[], Kind]] = {"npy": _npy, "npy-folder": _npy_folder, "parquet": _parquet, "kaldi": _kaldi}
"""By --source-type; each module is imported when it is used."""


def reading(settings: DataSettings, *, columns: Sequence[str] = (), progress: bool = False) -> AbstractContextManager[None]:
    """Within, read_source of the same has begun, where that is a process of its own. It says what is wrong, nothing here does."""
    if settings.source_type == "npy" and settings.source_path is not None and "{split}" not in str(settings.source_path):
        with suppress(DataError):
            return reading_npy(npy_file(settings.source_path), settings.splits, columns, progress=progress)
    return nullcontext()


def read_source(settings: DataSettings, *, columns: Sequence[str] = (), progress: bool = False) -> dict[str, SourceSplit]:
    """The embeddings of every split of the settings, or of all that the source holds. columns: further values to keep of each row.

    Raises DataError.
    """
    if settings.source_type == "chromadb":
        from .chroma.read import read_chroma  # chromadb takes a second to import

        return read_chroma(settings, columns, progress=progress)
    kind = _KINDS[settings.source_type]()
    found: dict[str, SourceSplit] = {}
    for split, path in places(settings.source_path, settings.splits, kind.what, kind.fits).items():
        if split is None:
            found = kind.read(path, settings.splits, columns, progress)
        else:
            found[split] = _one(kind.read(path, (), columns, progress), split, path)
    missing = [split for split in settings.splits if split not in found]
    if missing:
        held = listed(found)
        remedy = (
            "write a split in each row, or put {split} into --source-path"
            if list(found) == [ALL]
            else "set --splits to some of those"
        )
        raise DataError(f"{settings.source_path} has no split {missing[0]!r}; it has: {held}; {remedy}")
    return {split: found[split] for split in settings.splits or found}


def source_files(settings: DataSettings) -> list[Path]:
    """The files of a source that lies in files, each time in the same order. Raises DataError where there are none."""
    kind = _KINDS[settings.source_type]()
    return [
        file for path in places(settings.source_path, settings.splits, kind.what, kind.fits).values() for file in kind.files(path)
    ]


def _one(found: dict[str, SourceSplit], split: str, path: Path) -> SourceSplit:
    """The rows of a split where {split} led to them: those that name it, or all if none names another."""
    if split in found:
        return found[split]
    if list(found) != [ALL]:
        raise DataError(f"{path} is to hold split {split!r}, and has: {listed(found)}; leave {{split}} out of --source-path")
    return replace(found[ALL], name=split)


def npy_file(path: Path) -> Path:
    """The file that a path means. Raises DataError for one of another kind."""
    if path.suffix != ".npy" and path.is_file():
        raise DataError(
            f"{path} is neither a folder that holds {FILE_NAME} nor a .npy file; set --source-path to one, "
            "or --source-type to what it is"
        )
    return path if path.suffix == ".npy" else path / FILE_NAME
