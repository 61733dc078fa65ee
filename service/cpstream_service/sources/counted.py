"""A file whose reading a progress bar shows."""

import io
import os
from typing import Any

from tqdm import tqdm


class Counted(io.FileIO):
    """An open file; its descriptor stays open when this is closed."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._bar = tqdm(None, name, os.fstat(descriptor).st_size, unit="B", unit_scale=True, disable=None, delay=2)
        super().__init__(descriptor, closefd=False)

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._bar.update(count)
        return count

    def close(self) -> None:
        if not self.closed:
            self._bar.close()
        super().close()
