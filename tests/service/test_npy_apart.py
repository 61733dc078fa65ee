"""numpy_embs.npy read by a process of its own: the same as read here, and whatever a file asks for, it harms nobody."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import make_rows, npy_bytes, npy_of, write_npy
from test_npy_shapes import EXTRAS, SHAPES

from cpstream_service.errors import DataError
from cpstream_service.sources.npy import read_npy, reading_npy
from cpstream_service.sources.rows import SourceSplit

MB = 1 << 20


def held(splits: dict[str, SourceSplit]) -> Any:
    """What splits hold, to be compared."""
    return [
        (name, split.name, split.file_paths, split.problems, np.asarray(split.embeddings).tobytes(), split.embeddings.shape)
        for name, split in splits.items()
    ]


FILES: dict[str, Any] = SHAPES | {
    "lists": {"train": make_rows(3, as_list=True), "dev": []},
    "no usable row": {"train": [{"embedding": [], "file_path": "a.wav"}, {"file_path": "b\n.wav"}, None]},
    "several dimensions": {"train": [*make_rows(2, 7), *make_rows(3, 8), *make_rows(1, 9, as_list=True)]},
    "odd paths": {
        "train": [row | {"file_path": path} for row, path in zip(make_rows(3), ["\ud800", "ä/\x1b[0m.wav", "名"], strict=True)]
    },
}


@pytest.mark.parametrize("name", FILES)
def test_it_is_what_is_read_here(tmp_path: Path, name: str) -> None:
    path = write_npy(tmp_path, FILES[name])
    assert held(read_npy(path)) == held(read_npy(path, apart=False))


def test_the_splits_and_columns_asked_for(tmp_path: Path) -> None:
    values = [1, 1.5, float("inf"), "ü\ud800", None, True, 10**30, 10**400, b"x", [1], *chain(*EXTRAS.values())]
    rows = [row | {"rate": value} for row, value in zip(make_rows(len(values)), values, strict=True)]
    path = write_npy(tmp_path, {"train": rows, "dev": make_rows(2)})
    apart, here = (read_npy(path, ("train",), ("rate", "none"), apart=apart) for apart in (True, False))
    assert held(apart) == held(here)
    assert apart["train"].columns["none"] == [None] * len(values)
    for ours, expected in zip(apart["train"].columns["rate"], here["train"].columns["rate"], strict=True):
        assert type(ours).__name__ == type(expected).__name__
        assert ours == expected or not isinstance(expected, (str, int, float)) or abs(expected) == 10**400


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (npy_of({"train": make_rows(50)})[:-700], "bytes, within the data; copy or write it again"),
        (npy_of({"trian": []}), "has no split 'train'; it has: 'trian'; set --splits"),
        (npy_of({"train": {}}), "split 'train' holds a value of type dict, not a list of rows; write it with np.save"),
        (npy_bytes(b"\x80\x04cos\nsystem\n."), "its pickle names os.system, which embeddings do not need, so it was not run"),
        (npy_bytes(b"\x80\x04N(K\x01tb."), "its pickle is damaged (state is not a dictionary)"),
        (npy_bytes(b"\x80\x04NQ."), "its pickle is damaged (A load persistent id instruction was encountered, but no"),
    ],
)
def test_it_says_the_same(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "numpy_embs.npy"
    path.write_bytes(data)
    messages = []
    for apart in (True, False):
        with pytest.raises(DataError) as caught:
            read_npy(path, ("train",), apart=apart)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"{path}")
    assert said in messages[0]


# Hostile files


def row_of(embedding: bytes, path: bytes = b"\x8c\x05a.wav") -> bytes:
    return b"}(\x8c\x09embedding" + embedding + b"\x8c\x09file_path" + path + b"u"


def rows_of(rows: bytes) -> bytes:
    """A pickle of an array that holds {"train": rows}, rows being the opcodes between ( and l."""
    array = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
    return b"\x80\x04" + array + b"(K\x01)cnumpy\ndtype\n(\x8c\x02O8\x89\x88tR\x89(}\x8c\x05train(" + rows + b"lslt" + b"b."


def of_key(key: bytes) -> bytes:
    return b"\x80\x04}" + key + b"Ns."


def eight(number: int) -> bytes:
    return number.to_bytes(8, "little")


VECTOR = b"(" + b"K\x01" * 50_000 + b"l"
ARRAY = (
    b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01(J\x00\x64\x00\x00tcnumpy\ndtype\n(\x8c\x02f4\x89\x88tR"
    b"(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89B"
    + (4 * 25_600).to_bytes(4, "little")
    + bytes(4 * 25_600)
    + b"tb"
)
SCALAR = b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(\x8c\x02%s\x89\x88tRC\x04%stR"
COLLIDING = b"".join(b"\x8a\x0f" + (n * (2**61 - 1)).to_bytes(15, "little") + b"N" for n in range(1, 60_000))

MEMORY = "MB of memory to be read"
DAMAGED = "its pickle is damaged"
TRUNCATED = "is truncated: it ends after"
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "memo index": (lambda: b"\x80\x04Nr\xff\xff\xff\x0f0N.", MEMORY),
    "memo index as text": (lambda: b"\x80\x04Np500000000\n.", MEMORY),
    "key of nested tuples": (lambda: of_key(b")" + b"\x85" * 200_000), "made to do harm: the process that read it died of SIGSEGV"),
    "key whose hash takes 2**60 steps": (lambda: of_key(b")" + b"2\x86" * 60), "s of processor time to be read"),
    "keys of one hash": (lambda: b"\x80\x04}(" + COLLIDING + b"u.", "s of processor time to be read"),
    "frame": (lambda: b"\x80\x04\x95" + eight(1 << 40) + b"N.", MEMORY),
    "frame beyond any": (lambda: b"\x80\x04\x95" + eight(1 << 63) + b"N.", DAMAGED),
    "bytes": (lambda: b"\x80\x04\x8e" + eight(1 << 40) + b"N.", MEMORY),
    "text": (lambda: b"\x80\x04\x8d" + eight(1 << 40) + b"N.", MEMORY),
    "bytearray": (lambda: b"\x80\x05\x96" + eight(1 << 40) + b"N.", MEMORY),
    "long": (lambda: b"\x80\x04\x8b\xff\xff\xff\x7fN.", MEMORY),
    "long of negative length": (lambda: b"\x80\x04\x8b\xff\xff\xff\xffN.", DAMAGED),
    "long as text": (lambda: b"\x80\x04L" + b"9" * 200_000 + b"L\n.", DAMAGED),
    "empty dicts": (lambda: b"\x80\x04(" + b"}" * (8 * MB) + b"l.", MEMORY),
    "lists in lists": (lambda: b"\x80\x04" + b"]" * (4 * MB) + b"a" * (4 * MB - 1) + b".", MEMORY),
    "one row many times, a list": (lambda: rows_of(row_of(VECTOR) + b"\x94" + b"h\x00" * 50_000), MEMORY),
    "one row many times, an array": (lambda: rows_of(row_of(ARRAY) + b"\x94" + b"h\x00" * 50_000), MEMORY),
    "one path many times": (
        lambda: rows_of(row_of(b"(K\x01l", b"X\xa0\x86\x01\x00" + b"p" * 100_000) + b"\x94" + b"h\x00" * 50_000),
        MEMORY,
    ),
    "path of many parts": (
        lambda: b"\x80\x04\x8c\xff" + b"p" * 255 + b"\x940cpathlib\nPosixPath\n(" + b"h\x00" * 2 * MB + b"tR.",
        MEMORY,
    ),
    "text beyond Unicode": (lambda: b"\x80\x04" + SCALAR % (b"U1", b"\xff\xff\xff\x7f") + b".", DAMAGED),
    "text of huge type": (lambda: b"\x80\x04" + SCALAR % (b"O8", b"aaaa") + b".", DAMAGED),
    "shape without end": (lambda: rows_of(b"").replace(b"(K\x01)c", b"(K\x01(" + b"N" * 100_000 + b"tc"), DAMAGED),
}

READER = """
import json, os, resource, sys
from pathlib import Path
from cpstream_service.errors import DataError
from cpstream_service.sources import limits
from cpstream_service.sources.npy import read_npy
limits.CPU_S = 4
for path in map(Path, sys.argv[1:]):
    try:
        said = repr(read_npy(path))
    except DataError as error:
        said = str(error)
    own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps([path.parent.name, said, own * 1024, of_children * 1024]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """What one process says of all hostile files, the smaller ones first: the message, and the most memory it or a child had."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = []
    for name, (make, _) in HOSTILE.items():
        path = folder / name / "numpy_embs.npy"
        path.parent.mkdir()
        path.write_bytes(npy_bytes(make()))
        paths.append(path)
    paths.sort(key=os.path.getsize)
    ran = subprocess.run([sys.executable, "-c", READER, *paths], stdout=subprocess.PIPE, text=True, check=True)
    return {name: (said, max(memory)) for name, said, *memory in map(json.loads, ran.stdout.splitlines())}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_harms_nobody(outcomes: dict[str, tuple[str, int]], name: str) -> None:
    said, memory = outcomes[name]
    make, expected = HOSTILE[name]
    assert f"{os.sep}{name}{os.sep}numpy_embs.npy" in said.split(": ")[0]
    assert expected in said
    assert "\n" not in said
    assert len(said) < 2000
    assert memory <= 300 * MB + 10 * len(make())


@pytest.mark.parametrize("name", ["memo index", "key of nested tuples"])
def test_the_command_line_says_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "numpy_embs.npy").write_bytes(npy_bytes(HOSTILE[name][0]()))
    (tmp_path / "all_cps.csv").write_text("audio_path,cps\na.wav,12\n")
    ran = subprocess.run([sys.executable, "-m", "cpstream_service", "check", tmp_path], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert len(ran.stderr.splitlines()) == 1
    assert f"{tmp_path / 'numpy_embs.npy'}: its pickle" in ran.stderr


# The process


@dataclass(frozen=True)
class Busy:
    """A process that reads a file which takes for ever, and the one that it started for it, both in a group of their own."""

    reader: subprocess.Popen[str]
    child: int


def test_a_file_that_is_being_read_already_is_read_once(tmp_path: Path) -> None:
    path = write_npy(tmp_path, FILES["lists"])
    expected = held(read_npy(path, apart=False))
    with reading_npy(path):
        begun = newest_child()
        assert held(read_npy(path)) == expected
        assert is_gone(begun)
        assert held(read_npy(path)) == expected, "by another one"
    with reading_npy(path):
        begun = newest_child()
        assert list(read_npy(path, ("train",))) == ["train"], "what was begun is all splits"
    assert is_gone(begun)


def test_a_file_in_the_place_of_the_one_that_is_being_read_is_read_itself(tmp_path: Path) -> None:
    path = write_npy(tmp_path, FILES["lists"])
    other = write_npy(tmp_path / "other", {"train": make_rows(5, seed=1)})
    with reading_npy(path):
        other.replace(path)
        assert read_npy(path)["train"].embeddings.shape == (5, 8)


def test_what_is_wrong_with_a_file_is_said_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "numpy_embs.npy"
    path.write_bytes(npy_bytes(HOSTILE["key whose hash takes 2**60 steps"][0]()))  # so that it is still read when it is killed
    with reading_npy(tmp_path / "none.npy"), reading_npy(tmp_path), reading_npy(path):
        begun = newest_child()
        os.kill(begun, signal.SIGKILL)
        with pytest.raises(DataError, match="the process that read it was killed"):
            read_npy(path)


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Busy]:
    path = tmp_path / "numpy_embs.npy"
    path.write_bytes(npy_bytes(HOSTILE["key whose hash takes 2**60 steps"][0]()))
    code = READER.replace("CPU_S = 4", "CPU_S = 600")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, path], start_new_session=True, **pipes) as reader:
        try:
            yield Busy(reader, wait_for(lambda: next(filter(is_reading, children_of(reader.pid)), 0)))
        finally:
            reader.kill()


def children_of(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def newest_child() -> int:
    """Of this process, which may have others: of services that tests share."""
    return max(children_of(os.getpid()), key=lambda pid: int(fields_of(pid)[19]))


def fields_of(pid: int) -> list[str]:
    """Of its /proc/<pid>/stat, from the state on: the third field is the first here."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def is_reading(pid: int) -> bool:
    """Whether it has used half a second of processor time: longer than the imports."""
    return int(fields_of(pid)[11]) > os.sysconf("SC_CLK_TCK") / 2


def is_gone(pid: int) -> bool:
    try:
        return fields_of(pid)[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(find: Callable[[], Any], within_s: float = 60) -> Any:
    end = time.monotonic() + within_s
    while not (found := find()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_nothing_is_left_of_a_killed_reader(busy: Busy) -> None:
    busy.reader.kill()
    wait_for(lambda: is_gone(busy.child))


def test_ctrl_c_ends_both(busy: Busy) -> None:
    os.killpg(busy.reader.pid, signal.SIGINT)
    _, errors = busy.reader.communicate(timeout=60)
    assert busy.reader.returncode == -signal.SIGINT
    assert is_gone(busy.child)
    assert errors.count("Traceback") == 1, "the child's own would be a second"


def test_a_child_killed_for_want_of_memory_is_named(busy: Busy) -> None:
    os.kill(busy.child, signal.SIGKILL)  # as the kernel does
    said, _ = busy.reader.communicate(timeout=60)
    assert "numpy_embs.npy: the process that read it was killed, most likely for want of memory; free memory" in said
    assert len(said.splitlines()) == 1
