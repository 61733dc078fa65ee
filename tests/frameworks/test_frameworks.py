"""The blocks of docs/frameworks.md, as they stand there: three epochs with a crash in the second, in one process and in two.

What reaches the model is counted: every rank gets what torch's DistributedSampler gives it, each sample once an epoch, and after
the crash what follows the checkpoint, with the weights of just then, because a state that is ahead of the model would lose a batch.
`make test` runs the light ones, in one process; `make test-frameworks` all, and skips those that do not install.
"""

import os
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from conftest import Server
from oracle import indices_of, local
from recorder import digest

from cpstream_client import CpstreamError
from cpstream_client.torch import StreamingEmbeddingsDataset, loader

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "frameworks.md").read_text()
BLOCKS = dict(re.findall(r"<!-- framework: (\w+) -->\n+```python\n(.*?)```", TEXT, re.DOTALL))
N, BATCH_SIZE, EPOCHS = 1800, 256, 3
CRASH_AFTER = {1: 13, 2: 7}
"""Steps after which the first attempt crashes, by number of processes: in the second epoch, of 8 and of 4 steps."""
RESUMED_AT = {
    "torchrun": {1: 13, 2: 5},
    "lightning": {1: 12, 2: 6},
    "accelerate": {1: 13, 2: 5},
    "transformers": {1: 12, 2: 6},
    "torchdata": {1: 12, 2: 6},
    "ignite": {1: 12, 2: 6},
    "skorch": {1: 8, 2: 4},
    "fastai": {1: 8, 2: 4},
    "ray": {1: 13, 2: 5},
}
"""Steps of the last checkpoint before the crash."""
SCALED = {"lightning": "devices=1", "ray": "num_workers=1"}
"""What says in the block how many processes there are, where the number that torchrun starts does not say it."""


def expected(rank: int, processes: int) -> list[list[int]]:
    epochs = [indices_of(N, batch_size=BATCH_SIZE, epoch=epoch, rank=rank, world_size=processes) for epoch in range(EPOCHS)]
    return [batch for epoch in epochs for batch in epoch]


@cache
def index_of() -> dict[str, int]:
    return {digest(row): index for index, row in enumerate(local("train").audio_data)}


def recorded(file: Path) -> list[list[int]]:
    return [[index_of()[name] for name in line.split()] for line in file.read_text().splitlines()]


def run(name: str, processes: int, url: str, folder: Path, attempt: str) -> subprocess.CompletedProcess[str]:
    code = BLOCKS[name].replace("http://localhost:8000", url)
    if name in SCALED:
        assert SCALED[name] in code
        code = code.replace(SCALED[name], SCALED[name].replace("1", str(processes)))
    first = "import recorder\n"
    if name == "ray":  # whose training is in processes of its own; not in all, because each would load torch
        code = code.replace("def training():\n", "def training():\n    import recorder\n")
        first = f"import ray\nray.init(num_cpus={processes + 1}, include_dashboard=False)\n"
    (folder / "train.py").write_text(first + code)
    environment = os.environ | {
        "RECORD": str(folder / attempt),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # each report waits for it
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if attempt == "first":
        environment |= {"CRASH_AFTER": str(CRASH_AFTER[processes])} | ({"CRASH_BY_ERROR": "1"} if name == "ray" else {})
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 and name != "ray" else []), "train.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def cases() -> list[ParameterSet]:
    """Each framework in one process and in two; marked, but for what `make test` has time for: each start imports torch anew."""
    light = {(name, 1) for name in RESUMED_AT if name not in ("transformers", "fastai", "ray")} | {("accelerate", 2)}
    both = [(name, processes) for name in RESUMED_AT for processes in (1, 2)]
    return [pytest.param(*case, marks=[] if case in light else pytest.mark.frameworks) for case in both]


@pytest.mark.parametrize(("name", "processes"), cases())
def test_each_sample_reaches_the_model_once_an_epoch_and_after_a_crash(
    server: Server, tmp_path: Path, name: str, processes: int
) -> None:
    package = {"torchrun": "torch"}.get(name, name)
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed; make test-frameworks does it")
    crashed = run(name, processes, server.url, tmp_path, "first")
    resumed = run(name, processes, server.url, tmp_path, "second")
    assert (crashed.returncode != 0, resumed.returncode) == (True, 0), crashed.stderr + resumed.stderr
    for rank in range(processes):
        wanted = expected(rank, processes)
        assert recorded(tmp_path / f"first.{rank}") == wanted[: CRASH_AFTER[processes]]
        assert recorded(tmp_path / f"second.{rank}") == wanted[RESUMED_AT[name][processes] :]
        before, after = ((tmp_path / f"{attempt}.{rank}.weights").read_text().split() for attempt in ("first", "second"))
        assert len(set(before)) == CRASH_AFTER[processes] + 1
        assert after[0] == before[RESUMED_AT[name][processes]]


def test_each_block_is_run_and_each_sample_can_be_told() -> None:
    assert set(BLOCKS) == set(RESUMED_AT)
    assert len(index_of()) == N


@pytest.mark.frameworks
@pytest.mark.filterwarnings("default")  # of Ray's imports
def test_a_state_that_counts_what_ray_took_ahead_is_refused(server: Server) -> None:
    utils = pytest.importorskip("ray.train.torch.train_loop_utils", reason="ray is not installed; make test-frameworks does it")
    train = loader(StreamingEmbeddingsDataset(server.url, "train", batch_size=BATCH_SIZE))
    wrapped = utils._WrappedDataLoader(train, torch.device("cpu"), True)  # what prepare_data_loader makes
    for step, _ in enumerate(wrapped, 1):
        if step < len(train):
            with pytest.raises(CpstreamError, match="prepare_data_loader takes a batch ahead of the loop, and the state"):
                train.state_dict()
        else:  # nothing is ahead of the last
            assert train.state_dict()["epoch"] == 1
