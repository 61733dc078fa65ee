"""cpstream info and plan as a terminal of any width shows them."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from conftest import Server, published

from cpstream_service.cli.app import run
from cpstream_service.snapshot.store import Snapshot

EVIL = "[red]tr\x1b[31main"


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as ended:
        run(list(arguments))
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    return out


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_a_fingerprint_is_on_one_line_at_any_width(
    columns: int, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(monkeypatch, capsys, columns, "info", server.url)
    for name, split in server.snapshot.splits.items():
        assert f"{split.fingerprint}  {name}" in out.splitlines()


def test_no_number_is_cut(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(monkeypatch, capsys, 60, "info", server.url)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert not any("…" in cell for row in cells for cell in row[1:])
    columns = ["".join(column) for column in zip(*cells, strict=True)]
    assert columns[1] == "1,800300300"
    assert columns[3] == "float32" * 3


def test_info_as_json_is_what_the_service_says(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = json.loads(printed(monkeypatch, capsys, 20, "info", server.url, "--json"))
    assert listed == [published(split).model_dump(mode="json") for split in server.snapshot.splits.values()]


def test_names_of_others_are_neither_markup_nor_obeyed(
    snapshot: Snapshot,
    run_server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    split = snapshot.splits["dev"]
    evil = replace(split, name=EVIL, info=split.info.model_copy(update={"split": EVIL}))
    server = run_server(snapshot=replace(snapshot, splits={EVIL: evil}))
    for arguments in (["info", server.url], ["plan", server.url, EVIL, "--batch-size", "2"]):
        out = printed(monkeypatch, capsys, 100, *arguments)
        assert r"[red]tr\x1b[31main" in out
        assert all(c.isprintable() or c == "\n" for c in out)
