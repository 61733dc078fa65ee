"""The real service: `cpstream serve` as its own process on a free port."""

import http.client
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .processes import START_TIMEOUT_S, running, wait_for


@dataclass(frozen=True)
class Service:
    """A ready service. start_s: from the start of the process to the first answer of /readyz."""

    url: str
    pid: int
    start_s: float

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)


@contextmanager
def serving(
    source: Path,
    snapshot_dir: Path,
    *arguments: str,
    cgroup: Path | None = None,
    env: Mapping[str, str] | None = None,
    open_files: int | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> Iterator[Service]:
    """Serve the source until the block ends. Its log lies beside the snapshots. open_files: its limit of them.

    timeout_s: until it is ready.
    """
    snapshot_dir.mkdir(parents=True, exist_ok=True)
    log = snapshot_dir / "service.log"
    command = [sys.executable, "-m", "cpstream_service", "serve", "--source-path", str(source), "--snapshot-dir", str(snapshot_dir)]
    if open_files is not None:
        command = ["sh", "-c", f'ulimit -n {open_files} && exec "$@"', "sh", *command]
    started = time.perf_counter()
    with running([*command, "--host", "127.0.0.1", "--port", "0", *arguments], log, env=env, cgroup=cgroup) as process:
        found = wait_for(lambda: listening_at(log), process, log, timeout_s)
        wait_for(lambda: _ready(found), process, log, timeout_s)
        yield Service(found, process.pid, time.perf_counter() - started)


def listening_at(log: Path) -> str | None:
    """The URL that a service has written into its log."""
    found = re.search(r"serving at (http://[\w.:]+)", log.read_text())
    return found and found[1]


def _ready(url: str) -> bool | None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200 or None
    except OSError:
        return None
    finally:
        connection.close()
