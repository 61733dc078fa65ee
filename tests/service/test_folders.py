"""Folders of snapshots and caches in which others may change files."""

import os
from pathlib import Path

import pytest
from command import serve
from conftest import Server

from cpstream_client.files import writable_by_others
from cpstream_client.torch import StreamingEmbeddingsDataset

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
NOBODY = 65534


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        (0o700, None),
        (0o755, None),
        (0o1777, None),  # as /tmp
        (0o777, "(everybody may write, mode 777)"),
        (0o757, "(everybody may write, mode 757)"),
    ],
    ids=lambda value: oct(value) if isinstance(value, int) else "",
)
def test_who_may_write(mode: int, says: str | None, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    told = writable_by_others(tmp_path)
    assert told == (says and f"{tmp_path}: others can change what is kept here {says}")
    assert writable_by_others(tmp_path / "none") is None


@AS_ROOT
def test_groups_and_owners(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    os.chown(tmp_path, 0, 0)
    assert writable_by_others(tmp_path) is None  # the group is the user's own
    os.chown(tmp_path, 0, 1)
    told = writable_by_others(tmp_path)
    assert told is not None
    assert "group " in told
    tmp_path.chmod(0o755)
    assert writable_by_others(tmp_path) is None
    os.chown(tmp_path, NOBODY, NOBODY)
    told = writable_by_others(tmp_path)
    assert told is not None
    assert "(it belongs to nobody, mode 755)" in told


def test_the_service_warns_once(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    for mode, count in ((0o777, 1), (0o755, 0)):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
        with serve(tmp_path) as service:
            service.stop()
        assert service.log.read_text().count(f"WARNING {folder}: others can change what is kept here") == count


def test_a_cache_warns(server: Server, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    dataset = StreamingEmbeddingsDataset(server.url, "dev", batch_size=64, cache=str(tmp_path))
    with pytest.warns(UserWarning, match=r"kept here \(everybody may write, mode 777\); chmod go-w it, or choose"):
        next(iter(dataset))
