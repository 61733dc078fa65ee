"""Statistics over HTTP: computed when first asked for, by one process of low priority, kept, and ended with the service."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from arrays import snapshot_of
from conftest import Server, poll, serving

from cpstream_client.contract import figures
from cpstream_service.app import create_app
from cpstream_service.errors import StatisticsFailed
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot, open_snapshot
from cpstream_service.statistics import jobs
from cpstream_service.statistics.compute import compute
from cpstream_service.statistics.jobs import Jobs

URL = "/v1/splits/train/statistics"


@pytest.fixture
def copied(snapshot: Snapshot, tmp_path: Path) -> Snapshot:
    """The demo's snapshot, of which no statistics are kept yet."""
    return open_snapshot(
        Path(shutil.copytree(snapshot.path, tmp_path / snapshot.path.name, ignore=shutil.ignore_patterns("*statistics*")))
    )


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """More work than whoever looks on stands still: most of it, once they are read, is of 4096 dimensions by as many."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5_000, 4096), dtype=np.float32)
    return snapshot_of(tmp_path_factory.mktemp("slow") / "s", {"train": (rows, rng.uniform(5, 20, len(rows)))})


def children(snapshot: Snapshot, of: int | str = "self") -> set[int]:
    """The processes of a snapshot's statistics that this one, or another, has started: services that tests share have theirs."""
    found = set()
    for task in Path(f"/proc/{of}/task").iterdir():
        with suppress(OSError):  # threads and processes end meanwhile
            for child in (task / "children").read_text().split():
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                if b"cpstream_service.statistics.worker" in command and f'"{snapshot.path}"'.encode() in command:
                    found.add(int(child))
    return found


def is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def asked(http: httpx.Client, path: str = URL) -> httpx.Response:
    """The reply that is no 202 any more."""
    replies: list[httpx.Response] = []

    def is_ready() -> bool:
        replies.append(http.get(path))
        return replies[-1].status_code != 202

    poll(is_ready)
    return replies[-1]


def test_computed_when_first_asked_for_and_kept(copied: Snapshot, run_server: Callable[..., Server]) -> None:
    with httpx.Client(base_url=run_server(snapshot=copied).url) as http:
        assert not children(copied)  # nobody has asked
        first = http.get(URL)
        assert (first.status_code, first.headers["cache-control"], first.headers["retry-after"]) == (202, "no-store", "1")
        assert figures.Computing.model_validate_json(first.content).progress < 1
        reply = asked(http)
        projection = http.get("/v1/splits/train/projection")
        served = figures.Statistics.model_validate_json(reply.content)
    expected = compute(copied, (), lambda _: None)["train"]
    assert served.cps == expected.statistics.cps
    assert served.baseline is not None
    assert expected.statistics.baseline is not None
    assert served.baseline.ridge.mae == pytest.approx(expected.statistics.baseline.ridge.mae, rel=1e-9)
    assert len(figures.Projection.model_validate_json(projection.content).points) == copied.splits["train"].info.num_samples
    poll(lambda: not children(copied))  # it is heard before it ends
    with httpx.Client(base_url=run_server(snapshot=copied).url) as http:  # a restart, a replica
        again = http.get(URL)
        assert (again.status_code, again.content, again.headers["etag"]) == (200, reply.content, reply.headers["etag"])
        assert http.get(URL, headers={"If-None-Match": reply.headers["etag"]}).status_code == 304
        pinned = http.get(URL, params={"fingerprint": copied.splits["train"].fingerprint})
        assert pinned.headers["cache-control"] == "no-cache, no-transform"  # for ever would be too long: it is of other splits, too
    with httpx.Client(base_url=run_server(snapshot=copied, roles=("dev=test",)).url) as http:
        baseline = figures.Statistics.model_validate_json(asked(http).content).baseline
        assert baseline is not None
        assert baseline.chosen_on == "test"


@pytest.mark.parametrize("damage", ["cut", "altered", "another"])
def test_what_is_kept_and_not_whole_is_computed_anew(
    copied: Snapshot, run_server: Callable[..., Server], slow: Snapshot, damage: str
) -> None:
    kept = copied.path / ".statistics"
    with httpx.Client(base_url=run_server(snapshot=copied).url) as http:
        body = asked(http).content
    whole = kept.read_bytes()
    if damage == "cut":
        kept.write_bytes(whole[:-500])
    elif damage == "altered":
        kept.write_bytes(whole.replace(b"mean", b"maen", 1))
    else:
        kept.unlink()
        kept.symlink_to(slow.path / "manifest.json")
    with httpx.Client(base_url=run_server(snapshot=copied).url) as http:
        assert http.get(URL).status_code == 202
        assert asked(http).content == body
    assert kept.read_bytes() == whole
    assert not kept.is_symlink()


def test_where_it_cannot_be_kept_it_is_in_memory(copied: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    """As in a read-only folder, into which root may write nevertheless: a folder stands where the file would be."""
    (copied.path / ".statistics").mkdir()
    with serving(create_app(copied, ServeSettings())) as url, httpx.Client(base_url=url) as http:
        assert asked(http).status_code == 200
        assert http.get("/v1/splits/dev/statistics").status_code == 200
    assert "in memory alone" in caplog.text


def test_one_process_a_folder(slow: Snapshot) -> None:
    """However many workers and services are asked; the others see how far it is."""
    ours, theirs = Jobs(()), Jobs(())
    try:
        assert ours.ask(slow) == 0.0
        poll(lambda: children(slow) and theirs.ask(slow) != 0.0)
        (process,) = children(slow)
        assert os.getpriority(os.PRIO_PROCESS, process) > 0
    finally:
        ours.close()
        theirs.close()
    assert not children(slow)


def test_a_process_that_dies_is_started_again_but_not_for_ever(slow: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    (slow.path / ".statistics").unlink(missing_ok=True)
    job = Jobs(())
    try:
        for _ in range(jobs.MAX_FAILURES):
            assert isinstance(job.ask(slow), float)
            poll(lambda: children(slow))
            os.kill(children(slow).pop(), signal.SIGKILL)
            poll(lambda: not children(slow))
            poll(lambda: job._jobs[slow.fingerprint].thread is None)
        with pytest.raises(StatisticsFailed, match="3 times in a row"):
            job.ask(slow)
    finally:
        job.close()
    assert "exit code -9" in caplog.text


def test_a_file_that_is_short_is_said(copied: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    with serving(create_app(copied, ServeSettings())) as url, httpx.Client(base_url=url) as http:
        path = copied.splits["dev"].path / "embeddings.npy"
        shutil.copy(path, path.with_suffix(".short"))
        os.truncate(path.with_suffix(".short"), path.stat().st_size - 1000)
        os.replace(path.with_suffix(".short"), path)
        reply = asked(http)
    assert (reply.status_code, reply.json()["code"]) == (500, "statistics-failed")
    assert "it is not tried again" in caplog.text


def test_it_ends_with_the_service(slow: Snapshot) -> None:
    (slow.path / ".statistics").unlink(missing_ok=True)
    with serving(create_app(slow, ServeSettings())) as url:
        assert httpx.get(url + URL).status_code == 202
        poll(lambda: children(slow))
        (process,) = children(slow)
    assert not is_there(process)
    assert not (slow.path / ".statistics").exists()


def test_a_service_that_is_told_to_end_ends_it_at_once(slow: Snapshot) -> None:
    """Not after the streams that are let finish."""
    (slow.path / ".statistics").unlink(missing_ok=True)
    running: set[int] = set()

    def told() -> bool:
        """When it first says how far it is."""
        running.update(children(slow))
        return True

    job = Jobs((), told)
    job.ask(slow)
    poll(lambda: job._jobs[slow.fingerprint].thread is None)
    assert len(running) == 1
    assert not children(slow)
    assert not (slow.path / ".statistics").exists()
    assert job.ask(slow) == 0.0
    assert not children(slow), "nothing is begun any more"


def test_it_ends_with_a_service_that_is_killed(slow: Snapshot) -> None:
    (slow.path / ".statistics").unlink(missing_ok=True)
    code = (
        "import sys, time; from pathlib import Path; from cpstream_service.snapshot.store import open_snapshot\n"
        "from cpstream_service.statistics.jobs import Jobs\n"
        "jobs = Jobs(()); jobs.ask(open_snapshot(Path(sys.argv[1]), verify=False)); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(slow.path)]) as service:
        poll(lambda: children(slow, service.pid))
        (process,) = children(slow, service.pid)
        service.kill()
    poll(lambda: not is_there(process))
