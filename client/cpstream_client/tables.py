"""What a client gives as pandas DataFrames."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from .contract.bodies import SplitInfo
from .contract.wire import Column, Dtype
from .frames import frame_of, import_pandas, join
from .progress import shown
from .stream.reader import Batch

if TYPE_CHECKING:
    import pandas as pd


class Tables(ABC):
    """The methods of a client that need cpstream[pandas], over those that do not."""

    @abstractmethod
    def split(self, split: str) -> SplitInfo:
        """One split, as served now."""

    @abstractmethod
    def whole(self, columns: tuple[Column, ...], info: SplitInfo, dtype: Dtype = "float32") -> Iterator[Batch]:
        """All batches of a split, in its order."""

    def frame(
        self,
        split: str,
        columns: Sequence[Column] = ("file_path", "cps"),
        *,
        dtype: Dtype = "float32",
        info: SplitInfo | None = None,
    ) -> "pd.DataFrame":
        """A whole split as a pandas DataFrame, in the split's order: its index is the samples' `index`.

        columns: in the order wanted. `cps` is float32; `embedding`, which is not there by default, holds an array (D,) of dtype in
        each cell, all of them views of one (N, D) array, which `numpy.stack(frame["embedding"])` gives. info: the split as known,
        to pin its data. At a terminal, a bar shows how far it is. Needs cpstream[pandas].
        """
        import_pandas()  # before a download that would be for nothing
        info = info or self.split(split)
        columns = tuple(name for name in columns if name != "index")
        wanted: tuple[Column, ...] = columns or ("index",)
        return frame_of(shown(self.whole(wanted, info, dtype), f"downloading {split}", info.num_samples), info, columns, dtype)

    def join(
        self,
        split: str,
        frame: "pd.DataFrame",
        on: Literal["index", "file_path"] | None = None,
        *,
        columns: Sequence[Column] = ("cps",),
        partial: bool = False,
        info: SplitInfo | None = None,
    ) -> "pd.DataFrame":
        """A frame about the samples of a split, such as predictions, in the split's order beside file_path and these columns of it.

        Rows belong to samples by `on`: by default by their `file_path`, or else by their `index`, each a column or the name of the
        frame's index. There must be one row for each sample and no other, or UnmatchedError says how many are missing or unknown,
        and which come first; with partial=True a warning says so and the others are joined. Several equal rows of a sample count as
        one. Needs cpstream[pandas].
        """
        own: tuple[Column, ...] = ("file_path", *(name for name in columns if name != "file_path"))
        return join(self.frame(split, own, info=info), frame, split, on, partial)
