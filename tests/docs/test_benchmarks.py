"""The benchmark suite works: every part of it that needs no package of its own runs, compares the same content, and cleans up."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

from benchmarks import chart
from benchmarks.findings import Kind

ROOT = Path(__file__).parents[2]
RATIOS = (
    "idioms-256",
    "idioms-streaming",
    "streaming-256",
    "float16",
    "take",
    "sampled",
    "first-epoch",
    "cache-memory",
    "cache-disk",
    "raw-tcp",
    "np-take",
    "bare",
    "flight",
    "local-dataset",
)
OTHERS = ("client-cpu", "concurrency", "memory-per-stream", "larger-than-memory", "lines")


def run(*arguments: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "default", "-m", "benchmarks", *arguments]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


def test_list_names_every_measurement(tmp_path: Path) -> None:
    names = run("--list", tmp_path=tmp_path).stdout.split()
    assert len(names) == len(set(names))
    assert {
        *RATIOS,
        *OTHERS,
        "chroma",
        "webdataset",
        "litdata",
        "lance",
        "huggingface",
        "spdl",
        "grain",
        "ray-data",
        "gpu-copies",
        "fast-line",
        "gpu-cache",
        "start",
        "scaling",
        "attacks",
    } <= set(names)


def test_quick_run_measures_both_sides_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    done = run(
        "--quick", "--rounds", "1", "--results", str(tmp_path / "results"), "--only", *RATIOS, *OTHERS, tmp_path=tmp_path / "tmp"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (dated,) = (tmp_path / "results").glob("20*.json")
    assert dated.read_text() == (tmp_path / "results" / "latest.json").read_text()
    assert list((tmp_path / "tmp").iterdir()) == []

    report = json.loads(dated.read_text())
    assert report["command"].startswith("python -m benchmarks --quick --rounds 1")
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["packages"]["torch"]
    outcomes = {outcome["name"]: outcome for outcome in report["outcomes"]}
    assert set(outcomes) == {*RATIOS, *OTHERS}
    for name, outcome in outcomes.items():
        if outcome["status"] == "skipped" and name in ("cache-memory", "cache-disk", "larger-than-memory"):
            assert outcome["reason"]
            continue
        assert outcome["status"] == "done", outcome
        assert outcome["findings"]
        for finding in outcome["findings"]:
            assert finding["value"] > 0
            assert finding["what"] in done.stdout.replace("│\n│", "")
            assert finding["verdict"] in ("ok", "below", "info")
    for name in RATIOS:
        for finding in outcomes[name]["findings"]:
            ours, other = finding["sides"]
            assert len(ours["values"]) == len(other["values"]) == report["options"]["rounds"]


def test_mistakes_are_refused(tmp_path: Path) -> None:
    done = run("--rounds", "0", tmp_path=tmp_path)
    assert done.returncode == 2
    assert "--rounds is 0" in done.stderr


def test_two_commits_are_measured_in_turn_and_the_other_tree_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.versus", "HEAD", "--rounds", "1", "--samples", "2000", "--dim", "16"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    only = ["--only", "streaming-256", "take-cpu", "memory-per-stream"]
    done = subprocess.run([*command, *only], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for name in only[1:]:
        (row,) = (line for line in done.stdout.splitlines() if line.startswith(f"│ {name} "))
        assert row.count("(") == 2, row  # a spread of each side
    assert list(tmp_path.iterdir()) == []
    trees = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in trees


def test_the_chart_has_a_colour_and_a_meaning_for_each_kind_of_side() -> None:
    assert set(chart._COLORS) == set(chart._MEANINGS) == set(get_args(Kind))
