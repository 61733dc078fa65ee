"""Runs as they are kept: <state_dir>/predictions/<fingerprint of the split>/<name>.arrow, which replicas share.

A file is written beside and renamed, so that it is whole or not there: one column of float32, and the report as metadata of its
schema.
"""

import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from cpstream_client.contract.predictions import RunReport
from cpstream_client.contract.wire import PREDICTED
from cpstream_client.files import lock, no_follow

from ...arrow import numbers, values
from ...errors import StateFull
from ..distributions import Doubles

MOST_RUNS = 64
_SUFFIX, _WRITING, _REPORT = ".arrow", ".writing-", b"report"
_REMEDY = "set --state-dir to a folder on a disk with file locks"


class Runs:
    """The runs of all splits of a service. max_bytes: of all of them together."""

    def __init__(self, state_dir: Path, max_bytes: int) -> None:
        self._folder = state_dir / "predictions"
        self._max_bytes = max_bytes

    def keep(self, report: RunReport, predicted: Doubles) -> None:
        """In place of another run of the same name. Raises StateFull, OSError."""
        batch = pa.record_batch(
            [numbers(predicted.astype(np.float32))],
            schema=pa.schema([(PREDICTED, pa.float32())], metadata={_REPORT: report.model_dump_json()}),
        )
        path = self._path(report.fingerprint, report.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            path.parent.mkdir(exist_ok=True)
            if not path.exists() and len(self._names(report.fingerprint)) >= MOST_RUNS:
                raise StateFull(f"split {report.split!r} has {MOST_RUNS} runs, as many as are kept; delete one of them first")
            temporary = self._folder / f"{_WRITING}{secrets.token_hex(8)}"
            try:
                with open(temporary, "xb", opener=no_follow) as file:
                    with pa.ipc.new_file(file, batch.schema) as writer:
                        writer.write_batch(batch)
                    file.flush()
                    os.fsync(file.fileno())
                replaced = path.stat().st_size if path.exists() else 0
                if self._used() - replaced > self._max_bytes:
                    raise StateFull(
                        f"the runs of all splits take more than {self._max_bytes} bytes (--max-predictions-bytes); delete some"
                    )
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def count(self, fingerprint: str) -> int:
        """Of the runs of a split."""
        return len(self._names(fingerprint))

    def reports(self, fingerprint: str) -> list[RunReport]:
        """Of all runs of a split; what is no run is left out."""
        found = (self._opened(self._path(fingerprint, name)) for name in self._names(fingerprint))
        return [report for report, _ in filter(None, found)]

    def of_sample(self, fingerprint: str, index: int) -> list[tuple[str, float]]:
        """The name of each run of a split, and what it predicts of this sample, NaN where nothing."""
        found = ((name, self.find(fingerprint, name)) for name in self._names(fingerprint))
        return [(name, float(run[1][index])) for name, run in found if run is not None]

    def find(self, fingerprint: str, name: str) -> tuple[RunReport, Doubles] | None:
        """A run and what it predicts, (N,), NaN where nothing; None where there is none."""
        return self._opened(self._path(fingerprint, name))

    def delete(self, fingerprint: str, name: str) -> bool:
        """Whether there was one."""
        try:
            self._path(fingerprint, name).unlink()
        except FileNotFoundError:
            return False
        return True

    def forget(self, fingerprints: Collection[str], is_listed: Callable[[str], bool]) -> int:
        """Delete the runs of these splits and, of any other, those whose report names a listed path. Returns how many.

        The data that an old run was published for may be gone, and then only its report can say of whom it was. Raises OSError.
        """
        if not self._folder.is_dir():
            return 0
        count = 0
        with self._alone():
            for left in self._folder.glob(f"{_WRITING}*"):  # of a writer that was killed
                left.unlink(missing_ok=True)
            for folder in self._folder.iterdir():
                if not folder.is_dir():
                    continue
                for name in self._names(folder.name):
                    if folder.name in fingerprints or self._names_one(folder.name, name, is_listed):
                        count += self.delete(folder.name, name)
                with suppress(OSError):  # there are others in it
                    folder.rmdir()
        return count

    def _names_one(self, fingerprint: str, name: str, is_listed: Callable[[str], bool]) -> bool:
        found = self.find(fingerprint, name)
        return found is not None and any(map(is_listed, _paths_in(found[0])))

    def _path(self, fingerprint: str, name: str) -> Path:
        return self._folder / fingerprint / f"{name}{_SUFFIX}"

    def _names(self, fingerprint: str) -> list[str]:
        try:
            entries = os.listdir(self._folder / fingerprint)
        except FileNotFoundError:
            return []
        return sorted(entry.removesuffix(_SUFFIX) for entry in entries if entry.endswith(_SUFFIX))

    def _used(self) -> int:
        """Bytes of all that lies there."""
        return sum(
            Path(folder, name).stat().st_size for folder, _, names in os.walk(self._folder) for name in names if name != ".lock"
        )

    @staticmethod
    def _opened(path: Path) -> tuple[RunReport, Doubles] | None:
        try:
            with open(path, "rb", opener=no_follow) as file, pa.ipc.open_file(file) as reader:
                report = RunReport.model_validate_json(reader.schema.metadata[_REPORT])
                return report, values(reader.get_batch(0).column(0), np.float32).astype(np.float64)
        except (FileNotFoundError, pa.ArrowException, ValidationError, LookupError, TypeError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        held = no_follow(str(self._folder / ".lock"), os.O_RDWR | os.O_CREAT)
        try:
            lock(held, fcntl.LOCK_EX, self._folder, _REMEDY)
            yield
        finally:
            os.close(held)


def _paths_in(report: RunReport) -> Iterator[str]:
    for unmatched in (report.missing, report.unknown, report.conflicting, report.not_finite):
        yield from unmatched.examples
    yield from (missed.file_path for missed in report.worst)
