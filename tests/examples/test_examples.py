"""The examples as people run them: as processes, against a real service; killed, resumed, and in two processes."""

import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEMO_DATA, Server

EXAMPLES = DEMO_DATA.parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}  # one thread each: two ranks share two cores
EPOCHS = 2
STEPS = ["--epochs", str(EPOCHS), "--hidden", "32", "16", "--checkpoint-every", "5", "--batch-size", "12"]
LOCAL = ["--local", "--source-path", str(DEMO_DATA)]
pytestmark = pytest.mark.xdist_group("examples")  # one training for all


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / script), *arguments]


def torchrun(out: Path, *arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, str(EXAMPLES / "train_model.py"), *STEPS, "--out", str(out), *arguments]


def run(command: Sequence[str], code: int = 0) -> str:
    """Run to the end and return the output; exit code as expected."""
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_and_signal(command: Sequence[str], out: Path, signum: int, whom: Callable[[int], int] = int) -> tuple[int, str]:
    """Run until a random number of new checkpoints, send a signal to whom(pid), wait for the end. Returns exit code and output.

    From the start again where the training got to its end before: this process may have stood still meanwhile.
    """
    for _ in range(10):
        shutil.rmtree(out, ignore_errors=True)
        last, new = None, random.randint(1, 15)
        process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while new and process.poll() is None:
            time.sleep(0.001)
            if (now := version(out / "checkpoint.pt")) != last:
                last, new = now, new - 1
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(whom(process.pid), signum)
        output, _ = process.communicate(timeout=240)
        got_to_its_end = (out / "checkpoint.pt").exists() and len(checkpoint_of(out)["history"]) == EPOCHS
        if not got_to_its_end:
            return process.returncode, output
    raise AssertionError(output)


def version(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def rank_1_of(launcher: int) -> int:
    """Process id of rank 1 among the children of torchrun. Raises ProcessLookupError where it has ended."""
    with suppress(FileNotFoundError):
        for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
            if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
                return int(child)
    raise ProcessLookupError


def checkpoint_of(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out / "checkpoint.pt", weights_only=True)
    return state


def assert_same_run(one: Path, other: Path) -> None:
    """Same weights to the bit, same losses and scores to the last digit, same predictions."""
    weights, expected = checkpoint_of(one)["model"], checkpoint_of(other)["model"]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert figures(one) == figures(other)
    assert (one / "predictions.csv").read_bytes() == (other / "predictions.csv").read_bytes()


def figures(out: Path) -> list[dict[str, float]]:
    records = json.loads((out / "metrics.json").read_text())
    for record in records:
        assert record.pop("samples_per_s") > 0
    return records


@pytest.fixture(scope="module")
def trained(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run from the service that nothing interrupted."""
    out = tmp_path_factory.mktemp("trained")
    interpreter, *command = python("train_model.py", "--url", server.url, *STEPS, "--out", str(out))
    run([interpreter, "-W", "error", *command])
    return out


def test_training_reports_every_epoch(trained: Path) -> None:
    assert [record["epoch"] for record in figures(trained)] == [1, 2]
    assert [record["samples"] for record in figures(trained)] == [1800] * EPOCHS
    assert figures(trained)[-1]["dev_r2"] > 0.9


def test_local_training_is_the_same_to_the_bit_though_stopped(trained: Path, tmp_path: Path) -> None:
    command = python("train_model.py", *LOCAL, *STEPS, "--out", str(tmp_path))
    code, output = run_and_signal(command, tmp_path, random.choice([signal.SIGINT, signal.SIGTERM]))
    assert code in (128 + signal.SIGINT, 128 + signal.SIGTERM), output
    assert len(checkpoint_of(tmp_path)["history"]) < EPOCHS
    run(shlex.split(output.splitlines()[-1].partition("to go on: ")[2]))  # what it says is what goes on

    assert_same_run(tmp_path, trained)


def test_predictions_name_each_recording_of_the_split(trained: Path, server: Server) -> None:
    with (trained / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    split = server.snapshot.splits["test"]

    assert [row["file_path"] for row in rows] == split.file_paths.to_pylist()
    cps, predicted, error = (np.array([float(row[name]) for row in rows]) for name in ("cps", "predicted", "error"))
    np.testing.assert_allclose(cps, split.cps, atol=1e-4)
    np.testing.assert_allclose(error, predicted - cps, atol=2e-4)
    assert 1 - (error**2).sum() / ((cps - cps.mean()) ** 2).sum() > 0.9
    assert (trained / "predictions.png").read_bytes().startswith(b"\x89PNG")


def test_killed_and_resumed_training_ends_with_the_same_weights(trained: Path, server: Server, tmp_path: Path) -> None:
    command = python("train_model.py", "--url", server.url, *STEPS, "--out", str(tmp_path), "--resume")
    code, output = run_and_signal(command, tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    assert len(checkpoint_of(tmp_path)["history"]) < EPOCHS
    run([*command, "--workers", "1"])

    assert_same_run(tmp_path, trained)


def test_two_ranks_lose_one_and_resume_with_the_same_weights(server: Server, tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    run(torchrun(undisturbed, "--url", server.url))
    command = torchrun(disturbed, "--url", server.url, "--resume")
    code, output = run_and_signal(command, disturbed, signal.SIGKILL, rank_1_of)
    assert code == 1, output
    run(command)

    assert_same_run(disturbed, undisturbed)
    assert len(checkpoint_of(disturbed)["ranks"]) == 2
    assert [record["samples"] for record in figures(disturbed)] == [1800] * EPOCHS


def test_probing_reads_the_checkpoint_and_is_the_same_remote_and_local(trained: Path, server: Server, tmp_path: Path) -> None:
    command = ["acts_probing.py", "--checkpoint", str(trained / "checkpoint.pt")]
    table = run(python(*command, "--url", server.url, "--out", str(tmp_path / "remote")))
    run(python(*command, *LOCAL, "--out", str(tmp_path / "local")))

    text = (tmp_path / "remote" / "probing.csv").read_text()
    assert (tmp_path / "local" / "probing.csv").read_text() == text
    rows = {(row["network"], row["layer"]): row for row in csv.DictReader(text.splitlines())}
    layers = ["embedding", "hidden 1", "hidden 2", "output"]
    assert list(rows) == [(network, layer) for network in ("trained", "untrained") for layer in layers]
    assert all(layer in table for layer in layers)
    # The figure of examples/speech/evaluate.py, which has its own ridge regression and penalties.
    assert float(rows["trained", "embedding"]["test_r2"]) == pytest.approx(0.937, abs=0.003)
    assert float(rows["trained", "output"]["dev_r2"]) == pytest.approx(figures(trained)[-1]["dev_r2"], abs=1e-4)
    assert float(rows["trained", "hidden 2"]["test_r2"]) > float(rows["untrained", "hidden 2"]["test_r2"])
    assert (tmp_path / "remote" / "probing.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_user_can_mend_is_said_in_one_line(trained: Path, server: Server) -> None:
    cases = {
        "no service answers: http://127.0.0.1:9/v1/splits: ": ["train_model.py", "--url", "http://127.0.0.1:9"],
        "was made with --hidden": ["train_model.py", "--url", server.url, "--resume", "--hidden", "8", "--out", str(trained)],
        "nothing.pt does not exist": ["acts_probing.py", "--url", server.url, "--checkpoint", "nothing.pt"],
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = {said: subprocess.Popen(python(*arguments), env=ENV, **pipes) for said, arguments in cases.items()}
    outcomes = {said: (*process.communicate(timeout=240), process.returncode) for said, process in running.items()}
    for said, (output, errors, code) in outcomes.items():
        assert code == 1, errors
        assert said in errors
        assert errors.count("\n") == 1, errors
        assert not output
