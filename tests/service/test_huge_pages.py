"""What is written in huge pages is the file that was to be written."""

import errno
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest

from cpstream_service.snapshot.huge_pages import HUGE_PAGE_BYTES, WRITE_BYTES, huge_page_writer


@pytest.mark.parametrize("total", [0, 1, WRITE_BYTES - 1, WRITE_BYTES, 2 * WRITE_BYTES + 1])
@pytest.mark.parametrize("piece", [WRITE_BYTES // 3, 5 * WRITE_BYTES])
def test_a_file_holds_what_was_written_to_it_piece_by_piece(tmp_path: Path, total: int, piece: int) -> None:
    content = np.random.default_rng(0).integers(0, 256, total, np.uint8)
    scratch = np.empty(piece, np.uint8)
    with (tmp_path / "file").open("xb") as file, huge_page_writer(file) as writer:
        writer.write(b"head")
        for low in range(0, total, piece):
            part = content[low : low + piece]
            scratch[: len(part)] = part  # used again for each piece, as what is gathered into is
            writer.write(scratch[: len(part)].data)
    assert (tmp_path / "file").read_bytes() == b"head" + content.tobytes()


@pytest.mark.parametrize("total", [1, 3 * WRITE_BYTES])
def test_a_disk_that_is_full_is_an_error_where_the_file_is_written(total: int) -> None:
    with (
        open("/dev/full", "wb", buffering=0) as file,
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
        huge_page_writer(file) as out,
    ):
        out.write(bytes(total))


class Dear(io.BytesIO):
    """A file, and the clock of the processor that writes it. dear: how many times as much a byte of a huge page takes."""

    def __init__(self, dear: float) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self._dear, self._clock_s = dear, 0.0

    def write(self, data: "memoryview[int]") -> int:  # type: ignore[override]
        self.sizes.append(len(data))
        self._clock_s += len(data) / 1e9 * (self._dear if len(data) >= HUGE_PAGE_BYTES else 1)
        return super().write(data)

    def thread_time(self) -> float:
        return self._clock_s


@pytest.mark.parametrize(("dear", "huge"), [(1.0, 5), (2.5, 5), (8.0, 1)])
def test_huge_pages_are_given_up_where_they_are_dear(monkeypatch: pytest.MonkeyPatch, dear: float, huge: int) -> None:
    content = np.random.default_rng(0).integers(0, 256, 6 * WRITE_BYTES + 1, np.uint8)
    file = Dear(dear)
    monkeypatch.setattr(time, "thread_time", file.thread_time)
    with huge_page_writer(file) as writer:
        writer.write(content.data)
    assert sum(size >= HUGE_PAGE_BYTES for size in file.sizes) == huge
    assert file.getvalue() == content.tobytes()
