"""What people would pick instead, over loopback: each server a real process of its own, as ours is."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .bench import Bench, Measurement
from .findings import Finding, Skipped, at_least, ratio
from .loaders import BATCH, streaming
from .peers_local import SLOW_SAMPLES, against, pairs, peer, snapshot_arrays
from .processes import first_line, free_port, helper, running, wait_for
from .runner import Batches, Loader, fastest, samples_per_s

FLIGHT_BATCH_SIZES = (256, 1024, 4096, 16384)
CHROMA_PAGES = (250, 1000, 4000)
CHROMA_SAMPLES = 10_000


def measure_flight(bench: Bench) -> Iterator[Finding]:
    """Arrow Flight with our gather: a GeneratorStream of record batches, read chunk by chunk, tensors without a copy.

    Source: arrow.apache.org/docs/python/flight.html. Every batch size is tried first, and the fastest one is measured.
    """
    flight = peer("pyarrow.flight", "pyarrow with Flight")
    data = bench.data
    with bench.scratch("flight") as folder:
        arrays = map(str, snapshot_arrays(folder, data))
        with helper("servers.arrow_flight", *arrays) as server, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            with flight.FlightClient(f"grpc+tcp://127.0.0.1:{first_line(server)}") as client:

                def side(batch_size: int) -> Loader:
                    def epoch(number: int) -> Batches:
                        ticket = flight.Ticket(f'{{"batch_size": {batch_size}, "seed": {number}}}'.encode())
                        for chunk in client.do_get(ticket):
                            values = chunk.data.column(0).flatten().to_numpy().reshape(len(chunk.data), -1)
                            yield torch.from_numpy(values), torch.from_numpy(chunk.data.column(1).to_numpy())

                    label = f"Arrow Flight, batch {batch_size}"
                    return Loader(label, epoch, len(data), data.checksum(), kind="network")

                best = fastest(bench.progress, [side(size) for size in FLIGHT_BATCH_SIZES if size <= len(data)])
                ours = streaming(bench)
                passes = bench.interleave(ours, best)
    yield ratio(
        f"streaming, batch {BATCH}, against Arrow Flight at its best ({best.label.split(', ')[1]})",
        samples_per_s(ours, passes[0]),
        samples_per_s(best, passes[1]),
        at_least(2.5),
    )


def measure_chroma(bench: Bench) -> Iterator[Finding]:
    """`chroma run`, and pages of collection.get(limit, offset): in order, as Chroma cannot shuffle.

    Source: docs.trychroma.com, "client-server mode" and "get and peek". Every page size is tried first.
    """
    chromadb = peer("chromadb", "chromadb")
    data, samples = bench.data, min(CHROMA_SAMPLES, len(bench.data))
    with bench.scratch("chroma") as folder, _chroma_server(folder) as port:
        settings = chromadb.config.Settings(anonymized_telemetry=False)
        client = chromadb.HttpClient(host="127.0.0.1", port=port, settings=settings)
        collection = client.create_collection("speed_embeddings", embedding_function=None)
        step = min(1000, client.get_max_batch_size())
        for low in range(0, samples, step):
            bench.progress(f"filling Chroma, {low} of {samples} samples")
            rows = range(low, min(low + step, samples))
            collection.add(
                ids=[f"{i:08d}" for i in rows],
                embeddings=data.embeddings[rows.start : rows.stop],
                metadatas=[{"cps": float(data.cps[i])} for i in rows],
            )

        def side(page: int) -> Loader:
            def epoch(_: int) -> Batches:
                for offset in range(0, samples, page):
                    got = collection.get(limit=page, offset=offset, include=["embeddings", "metadatas"])
                    cps = [metadata["cps"] for metadata in got["metadatas"]]
                    yield torch.from_numpy(np.asarray(got["embeddings"], np.float32)), torch.tensor(cps, dtype=torch.float32)

            return Loader(f"Chroma get, pages of {page}", epoch, samples, data.checksum(samples), kind="network")

        best = fastest(bench.progress, [side(page) for page in CHROMA_PAGES if page <= samples])
        ours = streaming(bench)
        passes = bench.interleave(ours, best)
    yield ratio(
        f"streaming, batch {BATCH}, against Chroma's HTTP get at its best ({best.label.split(', ')[1]})",
        samples_per_s(ours, passes[0]),
        samples_per_s(best, passes[1]),
        at_least(60),
        note=f"Chroma holds {samples} samples, and does not shuffle",
    )


@contextmanager
def _chroma_server(folder: Path) -> Iterator[int]:
    command = Path(sys.executable).with_name("chroma")
    if not command.exists():
        raise Skipped("there is no command chroma beside this Python; pip install 'cpstream[bench]'")
    port = free_port()
    options = ["--path", str(folder / "data"), "--host", "127.0.0.1", "--port", str(port)]
    with running([str(command), "run", *options], folder / "chroma.log") as process:
        wait_for(lambda: _answers(port), process, folder / "chroma.log")
        yield port


def _answers(port: int) -> bool | None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/api/v2/heartbeat")
        return connection.getresponse().status == 200 or None
    except OSError:
        return None
    finally:
        connection.close()


def measure_webdataset(bench: Bench) -> Iterator[Finding]:
    """Tar shards from a static web server: shards shuffled, samples shuffled in a buffer of 1000, decoded, batched as tensors.

    Source: README of github.com/webdataset/webdataset; .ten, because its docstrings call that the fast way to load tensors.
    """
    wds = peer("webdataset", "webdataset")
    data, samples = bench.data, min(SLOW_SAMPLES, len(bench.data))
    with bench.scratch("webdataset") as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        shards = write_shards(wds, bench, folder, samples)
        with helper("servers.files", str(folder)) as server:
            port = first_line(server)
            urls = [f"http://127.0.0.1:{port}/{name}" for name in shards]

            def epoch(number: int) -> Batches:
                dataset = wds.WebDataset(urls, shardshuffle=len(urls), seed=number).shuffle(1000).decode()
                dataset = dataset.to_tuple("ten").map(_flat).batched(BATCH, collation_fn=torch.utils.data.default_collate)
                return pairs(wds.WebLoader(dataset, batch_size=None, num_workers=0), 0, 1)

            other = Loader("WebDataset over HTTP", epoch, samples, data.checksum(samples), kind="network")
            yield from against(bench, "WebDataset over HTTP", other, note="WebDataset shuffles within a buffer of 1000 samples")


def _flat(sample: Any) -> tuple[Any, Any]:
    """The arrays of a sample's only file: embedding (D,), cps ()."""
    ((embedding, cps),) = sample
    return embedding, cps[0]


def write_shards(wds: Any, bench: Bench, folder: Path, samples: int) -> list[str]:
    """Shards of 5000 samples. Returns their names."""
    data = bench.data
    with wds.ShardWriter(str(folder / "shard-%04d.tar"), maxcount=5000, verbose=0, mtime=0) as writer:
        for i in range(samples):
            writer.write({"__key__": f"{i:08d}", "ten": [data.embeddings[i], data.cps[i : i + 1]]})
    return sorted(path.name for path in folder.glob("*.tar"))


MEASUREMENTS = (
    Measurement("flight", measure_flight),
    Measurement("chroma", measure_chroma),
    Measurement("webdataset", measure_webdataset),
)
