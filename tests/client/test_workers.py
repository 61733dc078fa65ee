"""DataLoader workers: the same batches in the same order with any number of them, however started, and nothing left behind."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Server, grown, poll, serving
from oracle import FORKING, assert_same, epoch_of, local
from torch.utils.data import DataLoader

from cpstream_client import Client, DatasetChanged, NotFoundError, Retry
from cpstream_client.torch import StreamingEmbeddingsDataset, loader
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

pytestmark = FORKING


def plain(dataset: StreamingEmbeddingsDataset, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=None, **options)


NONE = [(plain, None, 0, 0), (loader, None, 0, 0)]
FORKS = [(make, "fork", num_workers, keep) for make in (plain, loader) for num_workers in (1, 2, 3) for keep in (0, 1)]
SERVED = [(loader, "forkserver", num_workers, keep) for num_workers in (1, 2, 3) for keep in (0, 1)]
SPAWNS = [(plain, "spawn", 1, 0), (loader, "spawn", 2, 1)]


@pytest.mark.parametrize(("make", "context", "num_workers", "persistent"), [*NONE, *FORKS, *SERVED, *SPAWNS])
def test_workers_change_nothing(server: Server, make: Any, context: str | None, num_workers: int, persistent: int) -> None:
    options: dict[str, Any] = {"batch_size": 128, "shuffle": True, "seed": 3, "rank": 1, "world_size": 2}  # 8 steps, the last short
    train = StreamingEmbeddingsDataset(server.url, "train", cache=None, **options)
    if context is not None:
        batches = make(
            train, num_workers=num_workers, persistent_workers=bool(persistent), multiprocessing_context=context, prefetch_factor=3
        )
    else:
        batches = make(train)
    train.set_epoch(0)
    # Without set_epoch the second time, which gives the same epoch; and persistent workers hear of the third.
    for epoch in (0, 0, 5):
        if epoch:
            train.set_epoch(epoch)
        assert_same(batches, epoch_of(local("train"), epoch=epoch, **options))
        if context == "spawn" and not persistent:
            break


@pytest.mark.parametrize("remainder", ["pad", "drop", "exact"])
def test_the_ragged_end_is_shared_right(server: Server, remainder: Any) -> None:
    # 300 samples on 7 ranks in batches of 42: exact gives rank 6 an empty second batch, of worker 1.
    options: dict[str, Any] = {"batch_size": 42, "remainder": remainder, "world_size": 7, "columns": ("index", "cps")}
    for rank in (0, 6):
        dev = StreamingEmbeddingsDataset(server.url, "dev", rank=rank, **options)
        alone = list(dev)
        for num_workers in (2, 3):  # 3: more workers than steps
            assert_same(loader(dev, num_workers=num_workers), alone)


def test_leaving_a_loop_over_persistent_workers_and_beginning_again_starts_over(server: Server) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=64, shuffle=True)
    batches = loader(train, num_workers=2, persistent_workers=True)
    for epoch in (1, 2):
        train.set_epoch(epoch)
        for _ in batches:
            break
        assert_same(batches, epoch_of(local("train"), batch_size=64, epoch=epoch))


def _wait(event: Event, worker: int) -> None:
    if worker:
        assert event.wait(60)


def test_a_worker_that_starts_late_begins_where_the_others_did(server: Server) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=64, shuffle=True)
    state = {**train.state_dict(), "start": 640}
    train.load_state_dict(state)
    may_start = multiprocessing.get_context("fork").Event()
    batches = iter(loader(train, num_workers=2, worker_init_fn=partial(_wait, may_start)))
    got = [next(batches)]  # of worker 0, while worker 1 has not even looked where to begin
    may_start.set()
    assert_same(got + list(batches), epoch_of(local("train"), batch_size=64)[10:])


def test_forking_in_the_middle_of_an_epoch_does_not_disturb_it(server: Server) -> None:
    client = Client(server.url)
    client.service = replace(client.service, request_bytes=20_000)
    train = StreamingEmbeddingsDataset(client, "train", batch_size=64, shuffle=True, prefetch_bytes=1)
    dev = StreamingEmbeddingsDataset(client, "dev", batch_size=64)
    got = []
    for step, batch in enumerate(train):
        got.append(batch)
        if step in (3, 20):  # evaluated by workers that inherit the connections and the thread's locks
            assert_same(loader(dev, num_workers=2), epoch_of(local("dev"), batch_size=64, shuffle=False))
    assert_same(got, epoch_of(local("train"), batch_size=64))


def test_an_error_in_a_worker_reaches_the_loop(server: Server) -> None:
    with pytest.raises(NotFoundError, match="trian"):
        list(plain(StreamingEmbeddingsDataset(server.url, "trian"), num_workers=2))


# Other data


@pytest.fixture
def other(snapshot: Snapshot) -> Snapshot:
    """Other data under the same name."""
    split = snapshot.splits["test"]
    return replace(snapshot, splits={"dev": replace(split, name="dev", info=split.info.model_copy(update={"split": "dev"}))})


def serve(snapshot: Snapshot, port: int = 0) -> Any:
    return serving(create_app(snapshot, ServeSettings()), port)


@pytest.mark.parametrize("persistent", [False, True])
def test_data_that_changes_between_epochs_is_refused(snapshot: Snapshot, other: Snapshot, port: int, persistent: bool) -> None:
    with serve(snapshot, port) as url:
        dev = StreamingEmbeddingsDataset(url, "dev", batch_size=64, retry=Retry(changed_timeout_s=0))
        # A plain loader: the process of the loop itself never asks the service, only its workers do.
        # (forkserver, because forked workers would keep the port of this process's server.)
        batches = plain(dev, num_workers=2, persistent_workers=persistent, multiprocessing_context="forkserver")
        assert_same(batches, epoch_of(local("dev"), batch_size=64, shuffle=False))
    with serve(other, port), pytest.raises(DatasetChanged) as caught:
        next(iter(batches))
    assert (caught.value.expected, caught.value.actual) == (snapshot.splits["dev"].fingerprint, other.splits["dev"].fingerprint)


def test_workers_that_meet_different_data_do_not_mix_it(snapshot: Snapshot, other: Snapshot) -> None:
    with serve(snapshot) as one, serve(other) as another:
        dev = StreamingEmbeddingsDataset([one, another], "dev", batch_size=64)
        batches = list(plain(dev, num_workers=2))
    of_one = epoch_of(local("dev"), batch_size=64, shuffle=False)
    of_another = epoch_of(local("test"), batch_size=64, shuffle=False)
    expected = of_one if len(batches[0][1]) and torch.equal(batches[0][1], of_one[0][1]) else of_another
    assert_same(batches, expected)  # the second worker asked the endpoint that holds what the first one met


# What is left behind. In processes of their own, so that they can be looked at as a whole.
#
# One thing is left aside, because it is multiprocessing's and any DataLoader's over tensors, too (measured: twice in a hundred
# loops over zeros that were left early): a worker that ends while a tensor is on its way may leave an empty folder pymp-*, or say
# that it could not remove it, because the thread of multiprocessing.resource_sharer is still about to put its socket there.

PRELUDE = """
import gc, json, multiprocessing, os, sys, tempfile, threading, time, warnings
from pathlib import Path
from torch.utils.data import DataLoader
from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, loader

url = sys.argv[1]


def dataset(cache=None):
    return StreamingEmbeddingsDataset(url, "train", batch_size=256, shuffle=True, prefetch_bytes=1, cache=cache)
"""

LEFTOVERS = (
    PRELUDE
    + """
warnings.simplefilter("error", ResourceWarning)  # of what is closed by the garbage collector only


def held():
    "What this process holds: threads, children, open files and sockets, shared memory, temporary files."
    files = []
    for name in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{name}").rstrip("0123456789[]-"))
        except OSError:
            pass  # that of the listing itself
    children = [pid for pid in os.listdir("/proc") if pid.isdigit() and f"PPid:\\t{os.getpid()}\\n" in status(pid)]
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "children": len(children),
        "files": sorted(files),
        "shared memory": sorted(name for name in os.listdir("/dev/shm") if str(os.getpid()) in name),
        "temporary files": [name for name in os.listdir(tempfile.gettempdir()) if not name.startswith("pymp-")],
    }


def settled():
    "The same, once it has not changed for a while: what ends by itself has ended."
    found, since = held(), time.monotonic()
    while time.monotonic() - since < 0.2:
        time.sleep(0.02)
        if (now := held()) != found:
            found, since = now, time.monotonic()
    return found


def status(pid):
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""  # gone meanwhile


def whole(batches):
    for _ in batches:
        pass


def leave(batches):
    for _ in batches:
        break


def fail(batches):
    try:
        for _ in batches:
            raise RuntimeError("in the loop")
    except RuntimeError:
        pass


def drop(batches):
    iterator = iter(batches)
    next(iterator)
    del iterator


def forget(batches):
    iter(batches)


def plain(dataset, **options):
    return DataLoader(dataset, batch_size=None, **options)


reports = {}
for make, uses in ((loader, (whole, leave, fail, drop, forget)), (plain, (leave, fail))):
    for options in json.loads(sys.argv[2]):
        for use in uses:
            before = held() if reports else None
            use(make(dataset(), **options))
            gc.collect()
            deadline = time.monotonic() + 20
            while before is not None and (after := held()) != before and time.monotonic() < deadline:
                time.sleep(0.02)
            if before is None:  # the first use opens what stays, such as the arena of multiprocessing's shared memory
                reports["first"] = True
                settled()
            elif after != before:
                changed = {name: [before[name], after[name]] for name in after if after[name] != before[name]}
                reports[f"{use.__name__} {options}"] = changed
print(json.dumps(reports))

# The interpreter ends in the middle of epochs, while threads and workers are at work.
alive = [iter(loader(dataset(), **options)) for options in json.loads(sys.argv[2])]
for iterator in alive:
    next(iterator)
"""
)


def run_script(script: str, *arguments: str, tmp_path: Path) -> subprocess.Popen[str]:
    """A process in a session of its own, so that Ctrl-C can reach its workers, too."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )


WORKERS: list[dict[str, Any]] = [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]


@pytest.fixture
def large(run_server: Callable[..., Server], snapshot: Snapshot) -> Server:
    """A split of several of the client's record batches, so that its thread has not finished before the loop leaves."""
    return run_server(snapshot=grown(snapshot, "train", 20_000))


def test_nothing_is_left_behind_in_the_process(large: Server, tmp_path: Path) -> None:
    process = run_script(LEFTOVERS, large.url, json.dumps(WORKERS), tmp_path=tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert err == "" or "in _remove_temp_dir" in err
    assert json.loads(out) == {"first": True}
    poll(lambda: session(process.pid) == [])  # one that has closed its files may still be about to end


INTERRUPTED = (
    PRELUDE
    + """
if __name__ == "__main__":
    batches = loader(dataset(*sys.argv[3:]), **json.loads(sys.argv[2]))
    epoch = 0
    while True:
        batches.set_epoch(epoch)
        for step, _ in enumerate(batches):
            if (epoch, step) == (1, 3):
                print("ready", flush=True)
        epoch += 1
"""
)


def session(leader: int) -> list[str]:
    """The processes of a session, by name."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = stat.read_text().rpartition(")")
        except OSError:
            continue  # gone meanwhile
        if int(fields.split()[3]) == leader and fields.split()[0] != "Z":
            found.append(name)
    return found


def connections_to(url: str) -> int:
    """Established TCP connections to a port of this machine, as the service sees them."""
    port = f":{int(url.rsplit(':', 1)[1]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(local_address.endswith(port) and state == "01" for _, local_address, _, state, *_ in rows)


@pytest.mark.parametrize(("options", "cache"), [*((options, []) for options in WORKERS), ({}, ["auto"])], ids=str)
def test_ctrl_c_in_the_loop_leaves_nothing_behind(large: Server, tmp_path: Path, options: dict[str, Any], cache: list[str]) -> None:
    process = run_script(INTERRUPTED, large.url, json.dumps(options), *cache, tmp_path=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT, err
    assert "KeyboardInterrupt" in err.splitlines()
    assert "Exception ignored" not in err
    assert "Fatal" not in err
    poll(lambda: session(process.pid) == [])
    poll(lambda: connections_to(large.url) == 0)
    assert [path for path in tmp_path.iterdir() if not path.name.startswith("pymp-")] == []
    assert [name for name in os.listdir("/dev/shm") if str(process.pid) in name] == []


def test_a_killed_loop_takes_its_workers_along(large: Server, tmp_path: Path) -> None:
    process = run_script(INTERRUPTED, large.url, json.dumps({"num_workers": 2}), tmp_path=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=60)
    poll(lambda: session(process.pid) == [])  # torch's watchdog looks every five seconds
    poll(lambda: connections_to(large.url) == 0)
