"""Mutations of everything that is read, as `make fuzz` tries them: so many of each, the same ones each time."""

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.__main__ import TARGETS, main

COUNT = 5000
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_altered_is_refused_in_one_line_or_is_what_it_was(target: str, tmp_path: Path) -> None:
    """No traceback, no crash, no hang, no memory beyond 300 MB and 10 times the file, nothing believed that is not true."""
    command = [sys.executable, "-m", "fuzz", "--count", str(COUNT), "--targets", target, "--keep", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{COUNT:,} mutations, 0 failed" in done.stdout


def test_what_fails_is_caught_counted_and_can_be_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a target that fails in every way that there is."""
    command = [sys.executable, "-m", "tests.fuzz.failing", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "tried 60 accepted 10 crash 10 hang 1 memory 10 traceback 20 refused 9" in done.stdout, done.stdout + done.stderr


def test_a_target_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--targets", "nothing"])
    assert "there is no target 'nothing'; targets: " in capsys.readouterr().err
