"""docs/guarantees.md names only tests that exist, and one for each promise."""

import ast
import re
from dataclasses import fields
from pathlib import Path

from cpstream_client import Retry

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text()


def test_every_test_named_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", TEXT)
    assert len(named) > 50
    defined = {
        (path.name, node.name)
        for path in Path(__file__).parents[1].rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert set(named) - defined == set()


def test_every_promise_has_a_test() -> None:
    tables = TEXT.split("| promise | how | test |\n")[1:]
    assert len(tables) > 10
    for table in tables:
        rows = re.match(r"\| --- \| --- \| --- \|\n((?:\|.*\|\n)+)", table)
        assert rows, table[:80]
        for row in rows[1].splitlines():
            promise, how, tests = row.strip("| ").split(" | ")
            assert promise, row
            assert how, row
            assert re.fullmatch(r"(`test_\w+\.py::test_\w+`(, )?)+", tests), row


def test_the_settings_of_retry_are_those_that_there_are() -> None:
    table = TEXT.partition("| `Retry` | default | meaning |")[2].partition("\n\n")[0]
    described = {}
    for row in table.splitlines()[2:]:
        names, defaults, _ = row.strip("| ").split(" | ")
        described.update(zip(re.findall(r"`(\w+)`", names), map(float, defaults.split(", ")), strict=True))
    assert described == {spec.name: spec.default for spec in fields(Retry)}
