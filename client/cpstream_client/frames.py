"""Splits as pandas DataFrames, and frames of predictions aligned with them. Imports pandas when it is used (cpstream[pandas])."""

import warnings
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .contract.bodies import SplitInfo
from .contract.wire import Dtype
from .errors import UnmatchedError
from .stream.reader import Batch

if TYPE_CHECKING:
    import pandas as pd

Key = Literal["index", "file_path"]
MAX_EXAMPLES = 5


def import_pandas() -> Any:
    """pandas; where it is not installed, ModuleNotFoundError with what to install."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        if error.name != "pandas":
            raise
        raise ModuleNotFoundError("frames need pandas; run: pip install 'cpstream[pandas]'", name="pandas") from None
    return pandas


def frame_of(batches: Iterable[Batch], info: SplitInfo, columns: Sequence[str], dtype: Dtype) -> "pd.DataFrame":
    """The batches of a whole split, in its order, as a frame with these columns, by index."""
    pd = import_pandas()
    n = info.num_samples
    floats = {name: np.empty(n, np.float32) for name in columns if name not in ("embedding", "index", "file_path")}
    embeddings = np.empty((n if "embedding" in columns else 0, info.embedding_dim), dtype)
    file_paths: list[str] = []
    at = 0
    for batch in batches:
        end = at + batch.num_rows
        for name, values in floats.items():
            values[at:end] = batch.cps if name == "cps" else batch.labels[name]
        if batch.embeddings is not None:
            embeddings[at:end] = batch.embeddings
        file_paths += batch.file_paths or ()
        at = end
    made: dict[str, Any] = {}
    for name in columns:
        if name == "embedding":
            made[name] = pd.Series(list(embeddings), dtype=object)
        else:
            made[name] = floats.get(name, file_paths)
    return pd.DataFrame(made, index=pd.RangeIndex(n)).rename_axis("index")


def join(
    samples: "pd.DataFrame", frame: "pd.DataFrame", split: str, on: Key | None = None, partial: bool = False
) -> "pd.DataFrame":
    """`samples`, a frame of a split by index with its file_path, beside what `frame` says of them. See Client.join."""
    pd = import_pandas()
    if not frame.columns.is_unique:
        raise ValueError(
            f"the frame has several columns {frame.columns[frame.columns.duplicated()][0]!r}; rename or drop all but one"
        )
    key = on or _key_of(frame)
    rows = _rows_of(samples, frame, key)
    other: Key = "index" if key == "file_path" else "file_path"
    if _has(frame, other):
        _refuse_contradiction(rows, _rows_of(samples, frame, other), _values(frame, key), other, split)
    rest = frame.drop(columns=["index", "file_path"], errors="ignore")
    both = [str(name) for name in rest.columns if name in samples.columns]
    if both:
        raise ValueError(
            f"the column {both[0]!r} is in the split and in the frame: rename it, as by "
            f"frame.rename(columns={{{both[0]!r}: 'predicted'}}), or leave it out of columns="
        )
    found = rows >= 0
    first = ~pd.Series(rows).duplicated().to_numpy()
    _refuse_conflicts(rest, rows, found & ~first, samples, split)
    is_hit = np.zeros(len(samples), bool)
    is_hit[rows[found]] = True
    _say_unmatched(samples, split, is_hit, _values(frame, key)[~found], partial)
    at = np.flatnonzero(found & first)
    at = at[np.argsort(rows[at], kind="stable")]
    joined = rest.iloc[at].set_axis(samples.index[rows[at]], axis=0)
    return pd.concat([samples.loc[joined.index], joined], axis=1)


def _has(frame: "pd.DataFrame", key: Key) -> bool:
    return key in frame.columns or frame.index.name == key


def _key_of(frame: "pd.DataFrame") -> Key:
    keys: tuple[Key, ...] = ("file_path", "index")
    for key in keys:
        if _has(frame, key):
            return key
    raise ValueError(
        f"the frame has neither a column 'file_path' nor one 'index', nor an index of that name; its columns: "
        f"{', '.join(map(repr, frame.columns))}. If it is indexed by the samples' index, say so: on='index'"
    )


def _values(frame: "pd.DataFrame", key: Key) -> npt.NDArray[Any]:
    """What the rows say of the samples that they belong to: a column, or else the frame's own index."""
    values: npt.NDArray[Any] = (frame[key] if key in frame.columns else frame.index).to_numpy(object)
    return values


def _rows_of(samples: "pd.DataFrame", frame: "pd.DataFrame", key: Key) -> npt.NDArray[np.int64]:
    """The sample that each row of the frame is of, by the key; -1 if none."""
    pd = import_pandas()
    values = _values(frame, key)
    if key == "index":
        if key not in frame.columns and frame.index.nlevels > 1:
            raise ValueError("the frame's index has several levels; name the samples by a column 'index' or 'file_path'")
        wrong = [value for value in values if not _is_whole(value)]
        if wrong:
            raise ValueError(f"the index {wrong[0]!r} is not a whole number; index samples from 0 on, or use on='file_path'")
        rows = values.astype(np.int64)
        rows[(rows < 0) | (rows >= len(samples))] = -1
        return rows
    found: npt.NDArray[np.int64] = pd.Index(samples["file_path"].to_numpy(object)).get_indexer(pd.Index(values)).astype(np.int64)
    return found


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _refuse_contradiction(
    rows: npt.NDArray[np.int64], others: npt.NDArray[np.int64], values: npt.NDArray[Any], other: Key, split: str
) -> None:
    wrong = np.flatnonzero((rows >= 0) & (rows != others))
    if len(wrong):
        raise UnmatchedError(
            f"split {split!r}: {len(wrong):,} rows of the frame are of one sample by their path and of another by their index "
            f"(first: {_shown(values[wrong])}); is the frame of other data? Drop its {other!r} if it means something else"
        )


def _refuse_conflicts(
    rest: "pd.DataFrame", rows: npt.NDArray[np.int64], again: npt.NDArray[np.bool_], samples: "pd.DataFrame", split: str
) -> None:
    """Several rows of one sample are one, where they say the same, as samplers that pad make them."""
    if not again.any():
        return
    first_of: dict[int, int] = {}
    for i, row in enumerate(rows.tolist()):
        first_of.setdefault(row, i)
    columns = [rest[name].to_numpy(object) for name in rest.columns]
    wrong = [i for i in np.flatnonzero(again).tolist() if not all(_same(c[i], c[first_of[int(rows[i])]]) for c in columns)]
    if wrong:
        paths = samples["file_path"].to_numpy(object)[sorted({int(rows[i]) for i in wrong})]
        raise UnmatchedError(
            f"split {split!r}: {len(paths):,} samples have several rows in the frame that differ (first: {_shown(paths)}); "
            "keep one row for each sample"
        )


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(np.array_equal(one, other, equal_nan=True))
    except TypeError:  # of no numbers
        return bool(np.array_equal(one, other))


def _say_unmatched(
    samples: "pd.DataFrame", split: str, is_hit: npt.NDArray[np.bool_], unknown: npt.NDArray[Any], partial: bool
) -> None:
    """Raise, or with partial warn, where samples have no row or rows have no sample."""
    missing = samples["file_path"].to_numpy(object)[~is_hit]
    said = []
    if len(missing):
        said.append(f"{len(missing):,} of {len(samples):,} samples have no row in the frame (first: {_shown(missing)})")
    if len(unknown):
        said.append(f"{len(unknown):,} rows of the frame are of no sample (first: {_shown(unknown)})")
    if not said:
        return
    text = f"split {split!r}: {'; '.join(said)}"
    if not partial:
        raise UnmatchedError(f"{text}; partial=True joins the others", tuple(missing), tuple(unknown))
    warnings.warn(text, stacklevel=4)


def _shown(values: Iterable[Hashable]) -> str:
    """The first of the values, in one line."""
    listed = list(values)
    texts = [repr(value) for value in listed[:MAX_EXAMPLES]]
    return ", ".join(text if len(text) <= 80 else f"{text[:25]}...{text[-52:]}" for text in texts)
