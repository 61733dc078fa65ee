"""Archives as Kaldi's own code writes them (kaldi_native_io) and as its Python writers do (kaldiio)."""

import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import kaldi_native_io
import kaldiio
import numpy as np
import pytest
from data import make_rows

from cpstream_service.errors import DataError, MissingFileError
from cpstream_service.sources.kaldi import kaldi_files, read_kaldi
from cpstream_service.sources.rows import SourceSplit

VECTORS = {f"spk{i % 2}-utt{i:03d}": row["embedding"] for i, row in enumerate(make_rows(5, 12))}


def write_by_kaldi(folder: Path, options: str = "", dtype: str = "Float", vectors: dict[str, Any] = VECTORS) -> Path:
    """x.scp and x.ark, as Kaldi's own code writes them."""
    writer = getattr(kaldi_native_io, f"{dtype}VectorWriter")(f"ark,scp{options}:{folder}/x.ark,{folder}/x.scp")
    for key, vector in vectors.items():
        writer[key] = vector.astype("f4" if dtype == "Float" else "f8")
    writer.close()
    return folder / "x.scp"


def read(path: Path) -> SourceSplit:
    return read_kaldi(path)["all"]


def check(found: SourceSplit, rtol: float = 0) -> None:
    assert found.file_paths == list(VECTORS)
    assert found.bare_keys
    assert found.problems == []
    np.testing.assert_allclose(found.embeddings, list(VECTORS.values()), rtol=rtol)


@pytest.mark.parametrize("dtype", ["Float", "Double"])
@pytest.mark.parametrize("suffix", [".scp", ".ark"])
@pytest.mark.parametrize(("options", "rtol"), [("", 0), (",t", 1e-5)], ids=["binary", "text"])
def test_archives_of_kaldi(tmp_path: Path, dtype: str, suffix: str, options: str, rtol: float) -> None:
    check(read(write_by_kaldi(tmp_path, options, dtype).with_suffix(suffix)), rtol)


@pytest.mark.parametrize("suffix", [".scp", ".ark"])
@pytest.mark.parametrize("as_matrix", [True, False])
@pytest.mark.parametrize("text", [True, False])
def test_archives_of_kaldiio(tmp_path: Path, suffix: str, as_matrix: bool, text: bool) -> None:
    arrays = {key: vector[None] if as_matrix else vector for key, vector in VECTORS.items()}
    kaldiio.save_ark(str(tmp_path / "x.ark"), arrays, scp=str(tmp_path / "x.scp"), text=text)
    check(read(tmp_path / f"x{suffix}"), 1e-6 if text else 0)


def test_a_folder_and_several_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, key in enumerate(VECTORS):
        kaldiio.save_ark(str(tmp_path / f"x.{i}.ark"), {key: VECTORS[key]}, scp=str(tmp_path / f"{i}"))
    lines = "".join((tmp_path / f"{i}").read_text() for i in range(5))
    (tmp_path / "x.scp").write_text(lines.replace(f"{tmp_path}/", "") + "\n")
    monkeypatch.setattr("cpstream_service.sources.kaldi._MAX_OPEN", 2)
    check(read(tmp_path))  # beside the .scp, as its paths lead nowhere from here
    monkeypatch.chdir(tmp_path)
    check(read(Path("x.scp")))
    assert [path.name for path in kaldi_files(Path("x.scp"))] == ["x.scp", *(f"x.{i}.ark" for i in range(5))]
    (tmp_path / "y.scp").write_text(lines)
    with pytest.raises(DataError, match=r"is a folder with 2 .scp files \(x.scp, y.scp\); set --source-path to the one to read"):
        read(tmp_path)


COMMANDS = [
    "utt copy-vector scp:x.scp ark:- |",
    "utt touch {marker} |",
    "utt touch {marker}|",
    "utt | touch {marker}",
    "utt |touch {marker}",
    "utt x.ark:4 | touch {marker} |",
    "| touch {marker} |",
    "utt\ttouch {marker} |  ",
]


@pytest.mark.parametrize("entry", COMMANDS)
def test_a_command_is_refused_before_any_reader_sees_it(tmp_path: Path, entry: str) -> None:
    scp = write_by_kaldi(tmp_path)
    marker = tmp_path / "executed"
    with scp.open("a") as file:
        file.write(entry.format(marker=marker) + "\n")
    for use in (read, kaldi_files):
        with pytest.raises(
            DataError, match=r"x.scp, line 6: the entry of .* holds a \|, which makes it a command; commands are not run"
        ):
            use(scp)
    assert not marker.exists()


def test_a_control_the_reader_alone_executes_it(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "x.scp").write_text(f"utt touch {marker} |\n")
    with suppress(Exception):
        kaldiio.load_scp(str(tmp_path / "x.scp"))["utt"]
    assert marker.exists()


class Touch:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("suffix", [".scp", ".ark"])
def test_a_pickle_in_an_archive_is_not_loaded(tmp_path: Path, suffix: str) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "x.ark").write_bytes(b"utt PKL" + pickle.dumps(Touch(marker)))
    (tmp_path / "x.scp").write_text(f"utt {tmp_path}/x.ark:4\n")
    if suffix == ".ark":
        with pytest.raises(DataError, match=r"x.ark: entry 1, 'utt', cannot be read \(it holds b'PKL.*' where numbers belong"):
            read(tmp_path / "x.ark")
    else:
        (problem,) = read(tmp_path / "x.scp").problems
        assert str(problem).startswith("line 1 (utt): it holds b'PKL")
    assert not marker.exists()
    kaldiio.load_mat(f"{tmp_path}/x.ark:4")  # a control
    assert marker.exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place, said in (
        (f"{tmp_path}/pipe", "is a pipe, not a file"),
        ("/dev/zero", "is a device, not a file"),
        (f"{tmp_path}", "Is a directory"),
        ("-", "there is no such file"),
    ):
        (tmp_path / "x.scp").write_text(f"utt {place}:4\n")
        with pytest.raises(DataError, match=said):
            read(tmp_path / "x.scp")
    with pytest.raises(DataError, match="pipe is a pipe, not a file"):
        read(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("utt", "x.scp, line 6: 'utt' is not `key file:offset`"),
        ("utt x.ark:9[0:3]", r"x.scp, line 6: 'utt' is a part \[0:3\] of a matrix"),
        ("utt gone.ark:9", "x.scp, line 6: gone.ark: there is no such file; paths in an .scp count from the folder where it was"),
    ],
)
def test_an_entry_that_leads_nowhere(tmp_path: Path, line: str, said: str) -> None:
    scp = write_by_kaldi(tmp_path)
    with scp.open("a") as file:
        file.write(line)
    with pytest.raises(DataError, match=said):
        read(scp)


def test_entries_that_are_no_vector_are_left_out_and_named(tmp_path: Path) -> None:
    scp = write_by_kaldi(tmp_path)
    kaldiio.save_ark(str(tmp_path / "frames.ark"), {"frames": np.zeros((9, 12), "f4")}, scp=str(tmp_path / "frames"))
    kaldiio.save_ark(str(tmp_path / "ints.ark"), {"ints": np.zeros(12, "i4")}, scp=str(tmp_path / "ints"))
    kaldiio.save_ark(str(tmp_path / "other.ark"), {"other": np.zeros(11, "f4")}, scp=str(tmp_path / "other"))
    kaldiio.save_ark(str(tmp_path / "wav.ark"), {"wav": (8000, np.zeros(12, "i2"))}, scp=str(tmp_path / "wav"))
    kaldiio.save_ark(str(tmp_path / "torn.ark"), {"torn": np.zeros(12, "f4")}, scp=str(tmp_path / "torn"))
    os.truncate(tmp_path / "torn.ark", 39)
    with scp.open("a") as file:
        file.writelines((tmp_path / name).read_text() for name in ("frames", "ints", "other", "wav", "torn"))
        file.write(f"past {tmp_path}/x.ark:99999\n")
    found = read(scp)
    assert found.file_paths == list(VECTORS)
    said = {str(problem.file_path): problem.detail for problem in found.problems}
    expected = {
        "frames": "the embedding has shape (9, 12); it must have one dimension",
        "ints": "it holds",
        "wav": "it holds b'RIFF",
        "torn": "it is truncated: 6 of 12 numbers are there",
        "past": "it holds b'' where numbers belong",
        "other": "the embedding has 11 numbers; most rows of 'all' have 12",
    }
    assert said.keys() == expected.keys()
    assert {key: text for key, text in expected.items() if text not in said[key]} == {}


def test_a_claim_of_more_numbers_than_memory_holds(tmp_path: Path) -> None:
    (tmp_path / "x.ark").write_bytes(b"utt \0BFM \4\xff\xff\xff\x7f\4\xff\xff\xff\x7f" + bytes(100))
    (tmp_path / "x.scp").write_text(f"utt {tmp_path}/x.ark:4\n")
    (problem,) = read(tmp_path / "x.scp").problems
    assert problem.detail.startswith("it is damaged")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS, not the data"),
        (b"\xff\xfe\xfd \0\0", "comes no key; it is damaged, or no archive"),
        (b"RIFF1234WAVE", "entry 1, 'RIFF1234WAVE', cannot be read"),
    ],
)
def test_no_archive(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.ark").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read(tmp_path / "x.ark")
    with pytest.raises(MissingFileError, match=r"y.ark: there is no such file; set --source-path to an .scp or .ark"):
        read(tmp_path / "y.ark")


def test_kaldiio_is_loaded_for_kaldi_only() -> None:
    code = "import sys, cpstream_service.sources.kaldi, cpstream_service.serve; assert 'kaldiio' not in sys.modules"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
