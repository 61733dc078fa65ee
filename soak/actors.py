"""Who asks the service, each in a thread: trainers whose every batch is compared with the truth, and clients that misbehave.

    python -m soak.actors good URL FAULTY_URL SAMPLES DIM SECONDS SEED      one long-lived process, in which memory must not grow
    python -m soak.actors workers URL FAULTY_URL SAMPLES DIM SECONDS SEED   a DataLoader with 2 workers
    python -m soak.actors bad URL FAULTY_URL SAMPLES DIM SECONDS SEED

Each says once a second, as a line of JSON, what it has done so far; and ends with status 1 where a batch was wrong.
"""

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from random import Random

import numpy as np

from cpstream_client import BatchQuery, Client, Retry
from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, loader

from .truth import SPLIT, Truth, WrongBatch

BATCH = 256
RETRY = Retry(timeout_s=120, first_delay_s=0.05, max_delay_s=1.0, contact_timeout_s=120)
_BAD_REQUESTS = (
    b"GET /v1/splits/train/batches?batch_size=0 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/splits/train/batches?limit=1&columns=nothing HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/splits/nowhere HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /v1/splits/train/take HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2000000\r\n\r\n"
    + b'{"indices": ['
    + b"1," * 999_990,
    b"POST /v1/splits/train/take HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nshort",
    b"HEAD /v1/splits/train/batches HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
)


class Cast:
    """The threads of one process, and what they have done."""

    def __init__(self, url: str, faulty: str, truth: Truth, seconds: float, seed: int) -> None:
        self.url, self.faulty, self.truth, self.seed = url, faulty, truth, seed
        self.until = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self._failed = threading.Event()

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until and not self._failed.is_set()

    def play(self, *parts: Callable[["Cast", Random], None]) -> int:
        threads = [
            threading.Thread(target=self._part, args=(part, i), name=f"{part.__name__}-{i}", daemon=True)
            for i, part in enumerate(parts)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and not self._failed.is_set():
            time.sleep(1)
            print(json.dumps(self.counts), flush=True)
        return int(self._failed.is_set())

    def _part(self, part: Callable[["Cast", Random], None], number: int) -> None:
        random = Random(f"{self.seed}:{part.__name__}:{number}")
        try:
            while self.goes_on:
                part(self, random)
        except BaseException as error:
            self.counts["wrong" if isinstance(error, WrongBatch) else "failed"] += 1
            traceback.print_exc()
            self._failed.set()


# Good ones


def trainer(cast: Cast, random: Random) -> None:
    """Epochs that are streamed, through faults."""
    dataset = StreamingEmbeddingsDataset(
        cast.faulty, SPLIT, batch_size=BATCH, shuffle=True, seed=3, cache=None, retry=RETRY, timeout=5
    )
    train = loader(dataset)
    for epoch in range(random.randrange(5), 10):
        dataset.set_epoch(epoch)
        order = cast.truth.order(3, epoch)
        stop = random.choice((1.0, 1.0, 0.3))  # some epochs are left
        for step, (embeddings, cps) in enumerate(train):
            cast.truth.check(order[step * BATCH : (step + 1) * BATCH], embeddings, cps, f"streamed, epoch {epoch}, step {step}")
            cast.counts["streamed"] += 1
            if not cast.goes_on or step * BATCH > stop * len(order):
                break


def cached_trainer(cast: Cast, _: Random) -> None:
    dataset = StreamingEmbeddingsDataset(cast.url, SPLIT, batch_size=BATCH, shuffle=True, seed=4, cache="memory", retry=RETRY)
    for epoch in range(6):
        dataset.set_epoch(epoch)
        order = cast.truth.order(4, epoch)
        for step, (embeddings, cps) in enumerate(loader(dataset)):
            cast.truth.check(order[step * BATCH : (step + 1) * BATCH], embeddings, cps, f"cached, epoch {epoch}, step {step}")
            cast.counts["cached"] += 1
        time.sleep(0.5)  # it would take all of a core
        if not cast.goes_on:
            return


def random_access(cast: Cast, random: Random) -> None:
    n = len(cast.truth.cps)
    dataset = RemoteEmbeddingsDataset(cast.faulty, SPLIT, retry=RETRY, timeout=5)
    for _ in range(200):
        indices = [random.randrange(n) for _ in range(random.choice((1, 32, 500)))]
        embeddings, cps = dataset[indices]
        cast.truth.check(np.array(indices), embeddings, cps, "random access")
        cast.counts["taken"] += 1
        time.sleep(0.01)
        if not cast.goes_on:
            return


def looks(cast: Cast, random: Random) -> None:
    """Metadata, rows, the plan, single batches in float16: all that a person asks for."""
    n = len(cast.truth.cps)
    with Client(cast.faulty, retry=RETRY, timeout=5) as client:
        for _ in range(50):
            info = client.split(SPLIT)
            offset = random.randrange(n)
            for row in client.rows(SPLIT, offset, 20).rows:
                if row.index is None or np.float32(row.cps) != cast.truth.cps[row.index]:
                    raise WrongBatch(f"row {row}")
            step = random.randrange(n // BATCH)
            (rank,) = client.plan(SPLIT, step, BatchQuery(batch_size=BATCH, shuffle="uniform", seed=9)).ranks
            wanted = cast.truth.order(9, 0)[step * BATCH : (step + 1) * BATCH].tolist()
            if [sample.index for sample in rank.samples] != wanted:
                raise WrongBatch(f"the plan of step {step}")
            for batch in client.batches(SPLIT, info=info, batch_size=64, limit=3, dtype="float16", start=offset):
                indices = np.asarray(batch.index)
                if not np.array_equal(batch.embeddings, cast.truth.embeddings[indices].astype(np.float16)):
                    raise WrongBatch(f"float16 at {offset}")
            cast.counts["looks"] += 1
            time.sleep(0.05)
            if not cast.goes_on:
                return


def worker_trainer(cast: Cast, random: Random) -> None:
    """A DataLoader with 2 workers, through faults; resumed in the middle of each epoch."""
    seed = random.randrange(100)
    options = {"batch_size": BATCH, "shuffle": True, "seed": seed, "cache": None, "retry": RETRY, "timeout": 5}
    order = cast.truth.order(seed, 0)
    first = loader(StreamingEmbeddingsDataset(cast.faulty, SPLIT, **options), num_workers=2)  # type: ignore[arg-type]
    left = random.randrange(1, len(order) // BATCH)
    for step, (embeddings, cps) in enumerate(first):
        cast.truth.check(order[step * BATCH : (step + 1) * BATCH], embeddings, cps, f"2 workers, step {step}")
        cast.counts["by workers"] += 1
        if not cast.goes_on:
            return
        if step == left:
            break
    state = first.state_dict()
    del first
    second = loader(StreamingEmbeddingsDataset(cast.faulty, SPLIT, **options), num_workers=2)  # type: ignore[arg-type]
    second.load_state_dict(state)
    for following, (embeddings, cps) in enumerate(second, left + 1):
        cast.truth.check(
            order[following * BATCH : (following + 1) * BATCH], embeddings, cps, f"2 workers, resumed, step {following}"
        )
        cast.counts["by workers"] += 1
        if not cast.goes_on:
            return


# Bad ones


def _connected(cast: Cast) -> socket.socket:
    host, port = cast.url.removeprefix("http://").split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(5)
    sock.connect((host, int(port)))
    return sock


def slow_reader(cast: Cast, random: Random) -> None:
    """Reads a whole epoch a few bytes at a time, for a while."""
    with _connected(cast) as sock:
        sock.sendall(b"GET /v1/splits/train/batches?shuffle=true HTTP/1.1\r\nHost: x\r\n\r\n")
        until = time.monotonic() + random.uniform(2, 40)
        try:
            while cast.goes_on and time.monotonic() < until:
                if not sock.recv(100):
                    break
                time.sleep(0.1)
        except OSError:
            pass
    cast.counts["slow readers"] += 1


def goes_away(cast: Cast, random: Random) -> None:
    """Ends its connection in the middle of a reply, by FIN or RST."""
    try:
        with _connected(cast) as sock:
            sock.sendall(b"GET /v1/splits/train/batches HTTP/1.1\r\nHost: x\r\n\r\n")
            for _ in range(random.randrange(5)):
                sock.recv(4096)
            if random.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    except OSError:
        pass
    cast.counts["gone away"] += 1
    time.sleep(0.1)


def asks_wrongly(cast: Cast, random: Random) -> None:
    try:
        with _connected(cast) as sock:
            sock.sendall(random.choice(_BAD_REQUESTS))
            if random.random() < 0.8:
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
    except OSError:
        pass
    cast.counts["bad requests"] += 1
    time.sleep(0.05)


PARTS: dict[str, tuple[Callable[[Cast, Random], None], ...]] = {
    "good": (trainer, cached_trainer, random_access, looks),
    "workers": (worker_trainer,),
    "bad": (*[slow_reader] * 10, *[goes_away] * 2, asks_wrongly, asks_wrongly),
}

if __name__ == "__main__":
    kind, url, faulty, samples, dim, seconds, seed = sys.argv[1:]
    cast = Cast(url, faulty, Truth.of(int(samples), int(dim)), float(seconds), int(seed))
    code = cast.play(*PARTS[kind])
    sys.stdout.flush()
    os._exit(code)  # daemon threads may still wait for their last replies
