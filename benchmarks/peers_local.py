"""What people would pick instead, reading from their own memory or disk. Each is used as its documentation advises."""

import importlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from .bench import Bench, Measurement
from .data import SPLIT, Data
from .findings import Finding, Skipped, ratio
from .loaders import BATCH, local, streaming
from .runner import Batches, Loader, fastest, samples_per_s

SLOW_SAMPLES = 20_000
"""A round of what reads some ten thousand samples a second. Rates are compared, so fewer samples do not flatter anyone."""


def peer(module: str, package: str, remedy: str = "pip install 'cpstream[bench]'") -> ModuleType:
    """Import a peer. Raises Skipped, with what to install."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except Exception as error:  # a peer may fail at import in any way
        raise Skipped(f"{package} does not import ({type(error).__name__}: {error}); {remedy}") from error


def pairs(batches: Iterable[Any], embedding: Any = "embedding", cps: Any = "cps") -> Iterator[tuple[Any, Any]]:
    """The two columns of what a loader yields."""
    for batch in batches:
        yield batch[embedding], batch[cps]


def against(bench: Bench, what: str, other: Loader, note: str = "") -> Iterator[Finding]:
    """Our streaming at batch 256 over another loader's rate."""
    ours = streaming(bench)
    passes = bench.interleave(ours, other)
    what = f"streaming against {what}, batch {BATCH}"
    yield ratio(what, samples_per_s(ours, passes[0]), samples_per_s(other, passes[1]), note=note)


def measure_workers(bench: Bench) -> Iterator[Finding]:
    yield from against(bench, "local DataLoader(TensorDataset) with 2 workers", local(bench.data, num_workers=2))


def measure_local_dataset(bench: Bench) -> Iterator[Finding]:
    """The data set of this project that reads the source itself, in a DataLoader."""
    try:
        from cpstream_service.dataset import RegressionEmbeddingsDataset
    except ImportError as error:
        raise Skipped("cpstream_service.dataset is not available yet") from error
    dataset = RegressionEmbeddingsDataset(bench.data.folder, SPLIT, progress=False)
    loader = DataLoader(dataset, BATCH, shuffle=True)
    content = bench.data.checksum()
    other = Loader("DataLoader(RegressionEmbeddingsDataset)", lambda _: loader, len(dataset), content, kind="local")
    yield from against(bench, "local DataLoader over RegressionEmbeddingsDataset", other)


def measure_huggingface(bench: Bench) -> Iterator[Finding]:
    """Arrow files on disk, torch format, a batch of indices at a time.

    Fixed-length features, with_format("torch"): huggingface.co/docs/datasets/use_with_pytorch; BatchSampler with batch_size=None:
    the same page of version 2, "Use a BatchSampler".
    """
    datasets = peer("datasets", "datasets")
    datasets.disable_progress_bars()
    data, samples = bench.data, min(SLOW_SAMPLES, len(bench.data))
    with bench.scratch("huggingface") as folder:
        features = datasets.Features(
            {"embedding": datasets.List(datasets.Value("float32"), length=bench.options.dim), "cps": datasets.Value("float32")}
        )
        datasets.Dataset(arrow_table(data, samples).cast(features.arrow_schema)).save_to_disk(str(folder / "data"))
        dataset = datasets.load_from_disk(str(folder / "data")).with_format("torch")
        sampler = BatchSampler(RandomSampler(dataset), BATCH, drop_last=False)
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, sampler=sampler)
        other = Loader("Hugging Face datasets", lambda _: pairs(loader), samples, data.checksum(samples), kind="local")
        yield from against(bench, "Hugging Face datasets on local disk", other)


def measure_lance(bench: Bench) -> Iterator[Finding]:
    """lance.torch.data.LanceDataset with batch_readahead and a sampler that shuffles batches; and take() of random rows.

    Source: lance.org/integrations/pytorch, the docstrings of lance.sampler, and "random access" of lance.org/guide/read_and_write.
    """
    lance = peer("lance", "pylance")
    torch_data, samplers = peer("lance.torch.data", "pylance"), peer("lance.sampler", "pylance")
    data, samples = bench.data, min(SLOW_SAMPLES, len(bench.data))
    with bench.scratch("lance") as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "with_row_id is not supported", UserWarning)
        path = str(folder / "data.lance")
        dataset = lance.write_dataset(arrow_table(data, len(data)), path)

        def scan(number: int) -> Batches:
            sampler = samplers.ShardedBatchSampler(rank=0, world_size=1, randomize=True, seed=number)
            batches = torch_data.LanceDataset(
                path, batch_size=BATCH, columns=["embedding", "cps"], batch_readahead=8, sampler=sampler, auto_detect_rank=False
            )
            return pairs(DataLoader(batches, batch_size=None))

        def take(_: int) -> Batches:
            for indices in BatchSampler(RandomSampler(range(samples)), BATCH, drop_last=False):
                table = dataset.take(indices, columns=["embedding", "cps"]).combine_chunks()
                rows = table["embedding"].chunk(0).flatten().to_numpy().reshape(len(indices), -1)
                yield torch.from_numpy(rows), torch.from_numpy(table["cps"].chunk(0).to_numpy())

        scanned = Loader("Lance, batches shuffled", scan, len(data), data.checksum(), kind="local")
        taken = Loader("Lance, random rows", take, samples, data.checksum(samples), kind="local")
        yield from against(bench, "Lance on local disk, batches shuffled", scanned, note="Lance shuffles batches here, not samples")
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        yield from against(bench, "Lance on local disk, random rows", taken)


def measure_litdata(bench: Bench) -> Iterator[Finding]:
    """optimize() into chunks of 64 MB, StreamingDataset(shuffle=True) in a StreamingDataLoader, at the best batch_decode.

    Source: the quick start of github.com/Lightning-AI/litData, and the docstring of StreamingDataset for batch_decode.
    """
    litdata = peer("litdata", "litdata")
    data, samples = bench.data, min(SLOW_SAMPLES, len(bench.data))
    with bench.scratch("litdata") as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        bench.progress("writing LitData's chunks")
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            litdata.optimize(
                fn=_Sample(data),
                inputs=list(range(samples)),
                output_dir=str(folder / "data"),
                num_workers=1,
                chunk_bytes="64MB",
                start_method="fork",  # the samples are inherited, not sent
                verbose=False,
            )

        def side(batch_decode: int | str) -> Loader:
            dataset = litdata.StreamingDataset(str(folder / "data"), shuffle=True, drop_last=False, batch_decode=batch_decode)
            loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)
            label = f"LitData, batch_decode={batch_decode!r}"
            return Loader(label, lambda _: pairs(loader), samples, data.checksum(samples), kind="local")

        best = fastest(bench.progress, [side(batch_decode) for batch_decode in ("auto", 0, "all")])
        yield from against(bench, f"LitData on local disk at its best ({best.label.split(', ')[1]})", best)


class _Sample:
    """What litdata.optimize calls for each index."""

    def __init__(self, data: Data) -> None:
        self._data = data

    def __call__(self, index: int) -> dict[str, Any]:
        embedding = torch.from_numpy(self._data.embeddings[index].copy())
        return {"embedding": embedding, "cps": torch.tensor(self._data.cps[index])}


def measure_mosaicml(bench: Bench) -> Iterator[Finding]:
    """MDS shards, StreamingDataset(shuffle=True, batch_size) in a DataLoader of the same batch size.

    Source: docs.mosaicml.com/projects/streaming, quick start and "performance tuning".
    """
    streaming = peer("streaming", "mosaicml-streaming", "install it in an environment of its own, where it gets numpy<2.2")
    data, samples = bench.data, min(SLOW_SAMPLES, len(bench.data))
    with bench.scratch("mosaicml") as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        columns = {"embedding": f"ndarray:float32:{bench.options.dim}", "cps": "float32"}
        with streaming.MDSWriter(out=str(folder / "data"), columns=columns) as writer:
            for index in range(samples):
                writer.write({"embedding": data.embeddings[index], "cps": data.cps[index]})
        dataset = streaming.StreamingDataset(local=str(folder / "data"), shuffle=True, batch_size=BATCH)
        loader = streaming.StreamingDataLoader(dataset, batch_size=BATCH)

        def epoch(_: int) -> Batches:
            for embeddings, cps in pairs(loader):
                yield embeddings, cps.to(torch.float32)

        other = Loader("MosaicML streaming", epoch, samples, data.checksum(samples), kind="local")
        try:
            yield from against(bench, "MosaicML streaming on local disk", other)
        finally:
            streaming.base.util.clean_stale_shared_memory()


def arrow_table(data: Data, samples: int) -> pa.Table:
    """The first samples as embedding fixed_size_list<float32>[D] and cps float32."""
    dim = data.embeddings.shape[1]
    values = pa.array(data.embeddings[:samples].reshape(-1))
    return pa.table({"embedding": pa.FixedSizeListArray.from_arrays(values, dim), "cps": data.cps[:samples]})


def snapshot_arrays(folder: Path, data: Data) -> tuple[Path, Path]:
    """The arrays as .npy files, for servers that are not ours."""
    paths = folder / "embeddings.npy", folder / "cps.npy"
    for path, array in zip(paths, (data.embeddings, data.cps), strict=True):
        np.save(path, array)
    return paths


MEASUREMENTS = (
    Measurement("local-workers", measure_workers),
    Measurement("local-dataset", measure_local_dataset),
    Measurement("huggingface", measure_huggingface),
    Measurement("lance", measure_lance),
    Measurement("litdata", measure_litdata),
    Measurement("mosaicml", measure_mosaicml),
)
