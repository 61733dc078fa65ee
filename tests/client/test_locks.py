"""A process that is forked while threads of its parent hold locks: it waits for none of them."""

import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack
from threading import Lock
from typing import Any

import pytest
from conftest import Server
from oracle import FORKING, assert_same, epoch_of, local
from torch.utils.data import DataLoader

from cpstream_client import BatchQuery, Client
from cpstream_client.locks import new_lock
from cpstream_client.stream.early import Early
from cpstream_client.stream.lanes import Flow
from cpstream_client.torch import StreamingEmbeddingsDataset

pytestmark = FORKING


def in_fork(work: Callable[[], object], held: list[Any]) -> None:
    """Do it in a process that is forked while these locks are held."""
    child = multiprocessing.get_context("fork").Process(target=work)
    with ExitStack() as stack:
        for lock in held:
            stack.enter_context(lock)
        child.start()
    child.join(60)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == 0


def test_a_worker_does_not_wait_for_locks_of_its_parents_threads(server: Server) -> None:
    client = Client(server.url)
    dev = StreamingEmbeddingsDataset(client, "dev", batch_size=64)
    batches = DataLoader(dev, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    with client.service.pace._lock, client._memory.times._adding, dev.tally._flowing:  # as another iteration's threads may
        iterator = iter(batches)  # forks
    assert_same(iterator, epoch_of(local("dev"), batch_size=64, shuffle=False))


def test_a_forked_process_streams_with_a_client_that_its_parents_threads_use(server: Server, long_path: list[Flow]) -> None:
    client = Client(server.url)

    def stream() -> None:
        assert sum(batch.num_rows for batch in client.batches("dev", BatchQuery(batch_size=64))) == 300
        assert client.take("dev", range(8)).num_rows == 8

    in_fork(stream, [client.service.pace._lock, client._memory.times._adding])


def test_a_request_that_the_parent_sent_early_is_none_of_a_forked_process(
    server: Server, long_path: list[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = StreamingEmbeddingsDataset(server.url, "dev", batch_size=64)
    dev.prepare_run()
    early = dev._early
    assert isinstance(early, Early)

    def iterate() -> None:
        assert sum(len(cps) for _, cps in dev) == 300

    in_fork(iterate, [early._sending])  # as its thread does while it connects and sends
    assert_same(dev, epoch_of(local("dev"), batch_size=64, shuffle=False))


def test_a_lock_that_nobody_held_at_a_fork_still_excludes() -> None:
    lock = new_lock()

    def exclude() -> None:
        with lock:
            assert not lock.acquire(blocking=False)
        assert lock.acquire(blocking=False)

    in_fork(exclude, [])
    in_fork(exclude, [lock])
    assert not lock.locked()
    assert isinstance(lock, type(Lock()))
