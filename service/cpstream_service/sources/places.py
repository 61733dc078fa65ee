"""Where the files of a source lie. `{split}` in --source-path stands for the name of a split."""

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import DataError, MissingFileError

SPLIT = "{split}"


def places(source_path: Path | None, splits: Sequence[str], what: str, fits: Callable[[Path], bool]) -> dict[str | None, Path]:
    """The place of each split asked for, or found; one place of None where the path has no {split}.

    what: the path should name; fits: whether one that is found does, as other things may lie beside.

    Raises DataError where there is no path, MissingFileError where it fits nothing.
    """
    if source_path is None:
        raise DataError(f"no source path: set --source-path (CPSTREAM_SOURCE_PATH) to {what}")
    template = str(source_path)
    if SPLIT not in template:
        return {None: source_path}
    if splits:
        return {split: Path(template.replace(SPLIT, split)) for split in splits}
    pattern = re.compile(
        re.escape(template).replace(re.escape(SPLIT), r"(?P<split>[^/]+)", 1).replace(re.escape(SPLIT), r"(?P=split)")
    )
    found = ((pattern.fullmatch(path), path) for path in sorted(glob.glob(glob.escape(template).replace(SPLIT, "*"))))
    held: dict[str | None, Path] = {match["split"]: Path(path) for match, path in found if match and fits(Path(path))}
    if not held:
        raise MissingFileError(f"{template}: nothing is there for any split; set --source-path to {what}")
    return held


def base_folder(source_path: Path) -> Path:
    """The folder in which what lies beside the source is looked for: the source itself, where it is a folder for all splits."""
    for parent in (source_path, *source_path.parents):
        if SPLIT not in str(parent):
            return parent if parent.is_dir() or not parent.suffix else parent.parent
    return Path()
