"""Data for the tests of sources, alignment and snapshots: files as people bring them, and a real Chroma server."""

import csv
import io
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cpstream_service.settings import DataSettings


def make_rows(count: int, dimension: int = 8, seed: int = 0, folder: str = "audio", as_list: bool = False) -> list[dict[str, Any]]:
    """Rows of one split as numpy_embs.npy holds them."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    return [
        {"embedding": vector.tolist() if as_list else vector.copy(), "file_path": f"{folder}/{i:04d}.wav"}
        for i, vector in enumerate(vectors)
    ]


def write_npy(folder: Path, splits: Any) -> Path:
    """numpy_embs.npy, as np.save writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "numpy_embs.npy"
    np.save(path, splits, allow_pickle=True)
    return path


def npy_bytes(pickled: bytes) -> bytes:
    """An .npy file whose array of one object is the given pickle."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    return file.getvalue() + pickled


def npy_of(value: Any, protocol: int = 4) -> bytes:
    """An .npy file of the value, pickled by the given protocol."""
    array = np.empty((), dtype=object)
    array[()] = value
    return npy_bytes(pickle.dumps(array, protocol=protocol))


def write_cps(
    path: Path, rows: Sequence[tuple[Any, ...]], header: Sequence[str] = ("audio_path", "cps"), separator: str = ","
) -> Path:
    """A CPS table."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def cps_of(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float]]:
    """CPS rows for embeddings, in another order than theirs."""
    return [(row["file_path"], 5 + i / 8) for i, row in reversed(list(enumerate(rows)))]


def write_dataset(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    """A whole source: numpy_embs.npy and a CPS table for each split. Returns the folder."""
    write_npy(folder, splits)
    for name, rows in splits.items():
        write_cps(folder / f"{name}_cps.csv", cps_of(rows))
    return folder


def make_settings(folder: Path, **changes: Any) -> DataSettings:
    """Settings of a source in `folder`, with the snapshots beside it."""
    defaults = {"source_path": folder, "snapshot_dir": folder.with_name(folder.name + "-snapshots")}
    return DataSettings(**{**defaults, **changes})


def run_python(code: str, *arguments: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run code in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


@contextmanager
def running_chroma(path: Path) -> Iterator[int]:
    """A Chroma server over the folder. Yields its port."""
    for _ in range(5):  # another process may take the port before Chroma does
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        command = [
            str(Path(sys.executable).with_name("chroma")),
            "run",
            "--path",
            str(path),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if _answers(process, port):
                yield port
                return
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(90)
    raise AssertionError("the Chroma server did not start")


def _answers(process: "subprocess.Popen[bytes]", port: int) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/api/v2/heartbeat", timeout=5).status_code == 200:
                return process.poll() is None
        except httpx.TransportError:
            time.sleep(0.05)
    return False


@pytest.fixture(scope="session")
def chroma_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a real, empty Chroma server that all tests share; each takes a collection of its own."""
    with running_chroma(tmp_path_factory.mktemp("chroma-server")) as port:
        yield port
