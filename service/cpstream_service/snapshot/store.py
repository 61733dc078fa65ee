"""The aligned tensors on local disk: written whole or not at all, verified when opened, memory-mapped by every worker process.

    <snapshot_dir>/<key>/manifest.json                      written last; holds its own hash, and those of the splits
    <snapshot_dir>/<key>/<split>/embeddings.npy             (N, D) float32
    <snapshot_dir>/<key>/<split>/cps.npy                    (N,) float32
    <snapshot_dir>/<key>/<split>/small-pages                where embeddings.npy is not in huge pages, see rewritten.py
    <snapshot_dir>/<key>/<split>/label-<name>.npy           (N,) float32, where further labels are served
    <snapshot_dir>/<key>/<split>/file_paths.arrow           one record batch, one column file_path
    <snapshot_dir>/<key>/<split>/dropped.csv                what alignment left out, where it did (dropped.py)
    <snapshot_dir>/.writing-<key>-<random>/                 on its way to <key>: fsynced, then renamed
    <snapshot_dir>/.lock-<key>                              held by the one process that writes <key>

Whoever has a snapshot open holds a shared lock on its manifest, so that nobody removes it as outdated.
"""

import fcntl
import json
import mmap
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from blake3 import blake3

from cpstream_client.contract.bodies import AlignmentReport, CpsStats, SplitInfo
from cpstream_client.contract.wire import COLUMNS, columns_of

from ..align.align import AlignedSplit
from ..errors import InvalidParameter, shown
from ..progress import Bar
from .dropped import write_dropped
from .fingerprint import dataset_fingerprint, pieces, split_fingerprint
from .gathered import gathered_ahead
from .huge_pages import huge_page_writer
from .synced import sync_folder, synced, written_back

FORMAT = 1
EMBEDDINGS, CPS, FILE_PATHS, MANIFEST = "embeddings.npy", "cps.npy", "file_paths.arrow", "manifest.json"
SMALL_PAGES = "small-pages"
PLACED = f"[!.]*/{MANIFEST}"
"""Glob of the manifests of snapshots in their place."""


def label_file(name: str) -> str:
    """The file of a further label, whose name is of letters, digits and _."""
    return f"label-{name}.npy"


class SnapshotInvalid(Exception):
    """There is no whole, unaltered snapshot there. The message says what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Split:
    """One split of an open snapshot. embeddings (N, D) float32 and cps (N,) float32 are read-only maps; path: their folder.

    labels: further ones by name, each (N,) float32.
    """

    name: str
    path: Path
    embeddings: npt.NDArray[np.float32]
    cps: npt.NDArray[np.float32]
    file_paths: pa.StringArray
    fingerprint: str
    info: SplitInfo
    report: AlignmentReport
    labels: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises InvalidParameter for a column that the split does not have."""
        wrong = [name for name in columns if name not in COLUMNS and name not in self.labels]
        if wrong:
            given = shown(",".join(columns))
            raise InvalidParameter(
                f"columns is {given}: {shown(wrong[0])} is no column; columns: {', '.join(columns_of(self.labels))}"
            )


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An open snapshot. fingerprint: of the whole dataset. forgotten: digest of the forget list that it was made by, or ""."""

    path: Path
    fingerprint: str
    splits: dict[str, Split]
    created_at: str
    forgotten: str = ""

    @property
    def reports(self) -> dict[str, AlignmentReport]:
        return {name: split.report for name, split in self.splits.items()}


# Open


def open_snapshot(path: Path, *, verify: bool = True) -> Snapshot:
    """Map a snapshot. verify: read all of it and compare the hashes, which also brings it into memory.

    Raises SnapshotInvalid when it is missing, torn, altered, or cannot be opened for whatever reason: then it is to be rebuilt.
    """
    try:
        lock = os.open(path / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SnapshotInvalid(f"{path.name} has no manifest ({error.strerror})") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        manifest = read_manifest(path)
        splits = {entry["name"]: _open_split(path, entry, verify) for entry in manifest["splits"]}
        fingerprint = dataset_fingerprint({name: split.fingerprint for name, split in splits.items()})
        if fingerprint != manifest["fingerprint"]:
            raise SnapshotInvalid(f"{path.name}: its splits are not those of its manifest")
        snapshot = Snapshot(path, fingerprint, splits, manifest["created_at"], manifest.get("forgotten", ""))
    except BaseException as error:
        os.close(lock)
        if isinstance(error, SnapshotInvalid) or not isinstance(error, Exception):
            raise
        raise SnapshotInvalid(f"{path.name} cannot be opened ({error!r})") from error  # whatever a damaged file makes of its reader
    weakref.finalize(snapshot, os.close, lock)
    return snapshot


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a snapshot. Raises SnapshotInvalid."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        body: dict[str, Any] = manifest["snapshot"]
        whole = manifest["blake3"] == _hash_of(body) and body["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotInvalid(f"{path.name}: its manifest is damaged ({error})") from None
    if not whole:
        raise SnapshotInvalid(f"{path.name}: its manifest was altered, or is of another version")
    return body


def _open_split(snapshot: Path, entry: Mapping[str, Any], verify: bool) -> Split:
    info, report = SplitInfo.model_validate(entry["info"]), AlignmentReport.model_validate(entry["report"])
    folder = snapshot / _folder_of(info.split)
    try:
        embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r", allow_pickle=False)
        cps = np.load(folder / CPS, mmap_mode="r", allow_pickle=False)
        with pa.memory_map(str(folder / FILE_PATHS)) as file, pa.ipc.open_file(file) as reader:
            file_paths = _plain(reader.get_batch(0).column(0))
        labels = {name: np.load(folder / label_file(name), mmap_mode="r", allow_pickle=False) for name in info.labels}
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        raise SnapshotInvalid(
            f"{snapshot.name}: split {info.split!r} cannot be read ({' '.join(str(error).split())[:300]})"
        ) from None
    shape = (info.num_samples, info.embedding_dim)
    if (embeddings.shape, cps.shape, len(file_paths)) != (shape, shape[:1], shape[0]):
        raise SnapshotInvalid(f"{snapshot.name}: split {info.split!r} has other sizes than its manifest says")
    if any(values.shape != shape[:1] or values.dtype != np.dtype("<f4") for values in labels.values()):
        raise SnapshotInvalid(f"{snapshot.name}: split {info.split!r} has other labels than its manifest says")
    if embeddings.dtype != np.dtype("<f4") or cps.dtype != np.dtype("<f4") or file_paths.type != pa.string():
        raise SnapshotInvalid(f"{snapshot.name}: split {info.split!r} has other types than its manifest says")
    if verify:
        _advise(embeddings, mmap.MADV_SEQUENTIAL)
        fingerprint = split_fingerprint(shape, pieces(embeddings), cps, file_paths, labels)
        _advise(embeddings, mmap.MADV_NORMAL)
        if fingerprint != info.fingerprint:
            raise SnapshotInvalid(f"{snapshot.name}: split {info.split!r} was altered: its content has another hash than written")
    return Split(info.split, folder, embeddings, cps, file_paths, info.fingerprint, info, report, labels)


def _plain(strings: pa.Array) -> pa.StringArray:
    """The strings of what is hashed, offsets and bytes, alone: a file may also say that some are null, and lie in that."""
    if strings.type != pa.string() or strings.null_count or strings.offset:
        raise ValueError(f"its paths are {strings.null_count} nulls of {strings.type} from {strings.offset} on")
    _, offsets, data = strings.buffers()
    return pa.StringArray.from_buffers(len(strings), offsets, data)


def _advise(mapped: npt.NDArray[np.float32], advice: int) -> None:
    memory = getattr(mapped, "_mmap", None)
    if memory is not None:
        memory.madvise(advice)


# Write


def write_snapshot(
    snapshot_dir: Path,
    key: str,
    splits: Sequence[AlignedSplit],
    *,
    source: str,
    identity: str,
    progress: bool = False,
    check: Callable[[], None] = lambda: None,
    forgotten: str = "",
) -> Path:
    """Write a snapshot beside its place, then rename it there. The caller holds `writing(snapshot_dir, key)`.

    source: what the split's metadata call it; identity: hash of the settings, by which older snapshots of the same data are known.
    check: called when all rows have been read; raises what keeps the snapshot from its place. forgotten: digest of the forget list.
    """
    temporary = snapshot_dir / f".writing-{key}-{secrets.token_hex(4)}"
    temporary.mkdir()
    entries: list[dict[str, Any]] = []
    for split in splits:
        folder = temporary / _folder_of(split.name)
        folder.mkdir()
        fingerprint = _write_split(folder, split, progress)
        info = _info(split, fingerprint, source)
        entries.append({"name": split.name, "info": info.model_dump(mode="json"), "report": split.report.model_dump(mode="json")})
    check()
    body = {
        "format": FORMAT,
        "fingerprint": dataset_fingerprint({entry["name"]: entry["info"]["fingerprint"] for entry in entries}),
        "identity": identity,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "forgotten": forgotten,
        "splits": entries,
    }
    with synced(temporary / MANIFEST) as file:
        file.write(json.dumps({"blake3": _hash_of(body), "snapshot": body}, indent=1).encode())
    sync_folder(temporary)
    target = snapshot_dir / key
    if target.exists():  # an invalid one; who has it mapped keeps it
        target.rename(snapshot_dir / f".writing-{key}-old-{secrets.token_hex(4)}")
    temporary.rename(target)
    sync_folder(snapshot_dir)
    return target


def _write_split(folder: Path, split: AlignedSplit, progress: bool) -> str:
    """Write one split's files. Returns its fingerprint."""
    shape = len(split), split.dimension
    with synced(folder / EMBEDDINGS) as file, written_back(file), huge_page_writer(file) as out:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(cast(IO[bytes], out), header)

        def written() -> Iterator[npt.NDArray[np.float32]]:
            name, phase = f"{split.name}: snapshot", f"writing split {split.name}"
            bar = Bar(None, name, len(split), phase=phase, unit=" rows", disable=None if progress else True, delay=2)
            for piece in gathered_ahead(split):
                out.write(piece.data)
                yield piece
                bar.update(len(piece))
            bar.close()

        fingerprint = split_fingerprint(shape, written(), split.cps, split.arrow_paths, split.labels, max_threads=1)
    if not out.is_huge:
        (folder / SMALL_PAGES).touch()
    with synced(folder / CPS) as file:
        np.save(file, split.cps.astype("<f4", copy=False))
    for name, values in split.labels.items():
        with synced(folder / label_file(name)) as file:
            np.save(file, values.astype("<f4", copy=False))
    write_dropped(folder, split.drops)
    with synced(folder / FILE_PATHS) as file:
        batch = pa.record_batch([split.arrow_paths], names=["file_path"])
        with pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
    sync_folder(folder)
    return fingerprint


def _info(split: AlignedSplit, fingerprint: str, source: str) -> SplitInfo:
    cps = split.cps.astype(np.float64)
    stats = CpsStats(min=float(cps.min()), max=float(cps.max()), mean=float(cps.mean()), std=float(cps.std()))
    dropped: dict[str, int] = {}
    for entry in split.report.dropped:
        dropped[entry.reason] = dropped.get(entry.reason, 0) + entry.count
    report = split.report
    return SplitInfo(
        split=split.name,
        num_samples=len(split),
        embedding_dim=split.dimension,
        dtype="float32",
        fingerprint=fingerprint,
        cps=stats,
        source=source,
        cps_definition=split.definition,
        labels=tuple(split.labels),
        num_embeddings=report.num_embeddings,
        num_cps=report.num_cps,
        num_dropped=report.num_dropped,
        dropped=dropped,
    )


def _folder_of(split: str) -> str:
    """A folder name for any split name: quoted, and never . or .. or hidden."""
    return quote(split, safe="").replace(".", "%2E")


def _hash_of(body: object) -> str:
    return blake3(json.dumps(body, sort_keys=True).encode()).hexdigest()
