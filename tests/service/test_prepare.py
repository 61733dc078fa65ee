from pathlib import Path

import httpx
from command import run, serve
from data import make_rows, write_cps, write_dataset


def test_serve_finds_what_prepare_wrote(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "source", {"train": make_rows(6)})
    options = ("--source-path", str(source), "--snapshot-dir", str(tmp_path / "snapshots"))
    first, second = run("prepare", *options), run("prepare", *options)
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout.startswith("wrote snapshot ")
    assert second.stdout.startswith("snapshot ")
    assert second.stdout.splitlines()[0].endswith(" is up to date")
    assert first.stdout.splitlines()[1:] == second.stdout.splitlines()[1:]
    with serve(tmp_path, source=source) as service:
        (split,) = httpx.get(f"{service.url}/v1/splits").json()["splits"]
        assert first.stdout.splitlines()[1] == f"train: 6 samples x {split['embedding_dim']}, fingerprint {split['fingerprint']}"
        assert "is up to date" in service.log.read_text()


def test_data_that_serve_would_refuse_is_refused_with_the_report(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "source", {"train": make_rows(2)})
    write_cps(source / "train_cps.csv", [("elsewhere.wav", 5)])
    done = run("prepare", str(source), "--snapshot-dir", str(tmp_path / "snapshots"))
    assert done.returncode == 1
    assert "no-cps" in done.stderr
    assert not list((tmp_path / "snapshots").glob("*/manifest*"))
