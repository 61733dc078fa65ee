"""A full disk, wherever it is, is one line: no signal, no traceback, and what is served goes on being served.

Of the cache see test_cache.py, of the float16 copy test_exports.py; here is the process.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from conftest import DEMO_DATA, poll

URL = re.compile(r"serving at (http://[\w.:]+)")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte free. Returns the file to delete where there shall be room again."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):  # whoever else writes there takes some meanwhile
        while True:
            file.write(bytes(os.statvfs(disk).f_frsize))
    return filler


def command(snapshots: Path, *options: str) -> list[str]:
    serve = [sys.executable, "-m", "cpstream_service", "serve", str(DEMO_DATA), "--snapshot-dir", str(snapshots)]
    return [*serve, "--host", "127.0.0.1", "--port", "0", *options]


@contextmanager
def running(snapshots: Path, log: Path, *options: str, **environment: str) -> Iterator["tuple[str, subprocess.Popen[bytes]]"]:
    """A service, by its URL and process, whose stderr goes to the file."""
    with log.open("ab") as errors:
        process = subprocess.Popen(command(snapshots, *options), stderr=errors, env=os.environ | environment)
    try:
        poll(lambda: URL.search(log.read_text()) or process.poll() is not None)
        found = URL.search(log.read_text())
        assert found, log.read_text()
        poll(lambda: answers(found[1]))
        yield found[1], process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) in (0, -signal.SIGTERM)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def epoch(url: str) -> int:
    reply = httpx.get(f"{url}/v1/splits/dev/batches")
    assert reply.status_code == 200
    return len(reply.content)


def test_a_disk_without_room_for_the_snapshot(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        done = subprocess.run(command(disk), capture_output=True, text=True, timeout=90)
        assert done.returncode == 1
        *log, last = done.stderr.splitlines()
        assert re.fullmatch(rf"cpstream: {disk}\S*: No space left on device; .*free space there.*", last), done.stderr
        assert all(" INFO " in line for line in log), done.stderr
        assert [path.name for path in disk.iterdir() if not path.name.startswith(".content-")] == []


def test_a_temporary_folder_that_fills_up_below_several_workers(tmp_path: Path) -> None:
    """There the numbers of all workers together are kept, in files that they map; a worker that is new finds no room for them."""
    log = tmp_path / "log"
    with (
        small_disk(tmp_path / "disk", "4m") as disk,
        running(tmp_path / "snapshots", log, "--workers", "2", TMPDIR=str(disk)) as (url, process),
    ):
        size = epoch(url)
        poll(lambda: len(list(disk.rglob("*.db"))) == 6)  # both workers have theirs
        fill(disk)
        for path in ("", "/alignment", "/rows", "/plan", "/cps.npy", "/batches?limit=1", "/nothing"):
            for split in ("dev", "train", "nowhere"):
                httpx.get(f"{url}/v1/splits/{split}{path}")
        assert [epoch(url) for _ in range(4)] == [size] * 4
        assert "counts its own requests alone" not in log.read_text()
        counted = re.findall(r"cpstream_requests_total{(.*)} ", httpx.get(f"{url}/metrics").text)
        assert len(counted) > 8, counted
        assert "died" not in log.read_text()
        workers = children(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        poll(lambda: "counts its own requests alone: " in log.read_text())
        assert f"{disk}" in log.read_text()
        poll(lambda: answers(url))
        assert [epoch(url) for _ in range(4)] == [size] * 4
        assert httpx.get(f"{url}/metrics").status_code == 200
    assert "Traceback" not in log.read_text()


def children(pid: int) -> list[int]:
    """The workers of a service."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_below_the_log(tmp_path: Path, workers: int) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        with running(tmp_path / "snapshots", disk / "log", "--workers", str(workers)) as (url, _):
            size = epoch(url)
            filler = fill(disk)
            lines = (disk / "log").read_text().count("\n")
            assert [epoch(url) for _ in range(200)] == [size] * 200
            assert httpx.get(f"{url}/v1/splits/nowhere").status_code == 404
            filler.unlink()
            assert epoch(url) == size
            poll(lambda: (disk / "log").read_text().count("\n") > lines)
        assert "Traceback" not in (disk / "log").read_text()
