"""How much memory is free, from the files of Linux, and who gets it."""

import gc
from pathlib import Path

import pytest

from cpstream_client.epochs.budget import Budget, free_bytes
from cpstream_service.batches.residency import memory_limit_bytes

GB = 10**9
PAGES = 9223372036854771712
"""What version 1 says where there is no limit."""


def system(folder: Path, cgroup: str, files: dict[str, object], free_kb: int = 8_000_000) -> tuple[str, str]:
    """/proc and /sys/fs/cgroup of a machine."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text(f"MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: {free_kb} kB\n")
    (folder / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return str(folder / "proc"), str(folder / "cgroup")


V1, V2 = "5:cpu:/\n4:hugetlb,memory:/job\n", "0::/job/step\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "free"),
    [
        ("", {}, 8_000_000 * 1024),
        (V2, {"job/step/memory.max": "max", "job/step/memory.current": GB}, 8_000_000 * 1024),
        (V2, {"job/step/memory.max": 4 * GB, "job/step/memory.current": GB}, 3 * GB),
        # What is cached of files goes when it is needed.
        (
            V2,
            {
                "job/step/memory.max": 4 * GB,
                "job/step/memory.current": 3 * GB,
                "job/step/memory.stat": f"anon {GB}\ninactive_file {2 * GB}",
            },
            3 * GB,
        ),
        # A job's limit holds for all of its steps together.
        (
            V2,
            {
                "job/step/memory.max": 4 * GB,
                "job/step/memory.current": GB,
                "job/memory.max": 5 * GB,
                "job/memory.current": 4 * GB,
            },
            GB,
        ),
        (V2, {"job/step/memory.max": GB, "job/step/memory.current": 2 * GB}, 0),
        # In a container the path is the host's.
        (V2, {"memory.max": 2 * GB, "memory.current": GB}, GB),
        (V1, {"memory/job/memory.limit_in_bytes": PAGES, "memory/job/memory.usage_in_bytes": GB}, 8_000_000 * 1024),
        (
            V1,
            {
                "memory/job/memory.limit_in_bytes": 4 * GB,
                "memory/job/memory.usage_in_bytes": 3 * GB,
                "memory/job/memory.stat": f"inactive_file 5\ntotal_inactive_file {GB}",
            },
            2 * GB,
        ),
    ],
)
def test_free_memory_is_the_lower_of_the_machines_and_the_cgroups(
    tmp_path: Path, cgroup: str, files: dict[str, object], free: int
) -> None:
    assert free_bytes(*system(tmp_path, cgroup, files)) == free


@pytest.mark.parametrize(
    ("cgroup", "file"),
    [(V2, "job/step/memory.max"), (V2, "job/memory.max"), (V1, "memory/job/memory.limit_in_bytes")],
)
def test_the_service_goes_by_the_same_limits(tmp_path: Path, cgroup: str, file: str) -> None:
    proc, cgroups = system(tmp_path, cgroup, {file: GB, "job/step/memory.current": 0})
    assert memory_limit_bytes(f"{proc}/self/cgroup", cgroups) == GB


def test_where_the_system_does_not_say_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> int:
        raise ValueError("unrecognized configuration name")  # as macOS does

    monkeypatch.setattr("os.sysconf", unknown)
    assert free_bytes(str(tmp_path), str(tmp_path)) is None
    verdict = Budget(lambda: None).ask(1)
    assert (verdict.granted, verdict.why) == (False, "this system does not say how much memory is free")


def test_a_quarter_is_shared_and_comes_back() -> None:
    budget = Budget(lambda: 8 * GB)
    train = budget.ask(3 * GB // 2)
    assert train.granted
    assert train.why == "1,500 MB of a budget of 2,000 MB, a quarter of the free memory"
    dev = budget.ask(GB)
    assert not dev.granted
    assert dev.why == "1,000 MB exceed a budget of 500 MB, a quarter of the free memory less 1,500 MB of other datasets"
    assert budget.held_bytes == 3 * GB // 2
    test = budget.ask(GB // 2)
    assert test.granted
    del train
    gc.collect()
    assert budget.held_bytes == GB // 2
    assert budget.ask(GB).granted


def test_what_has_become_scarce_since_is_not_promised() -> None:
    free = [8 * GB]
    budget = Budget(lambda: free[0])
    train = budget.ask(GB)
    free[0] = 2 * GB  # the cache has filled, and a model has come
    assert train.granted
    assert budget.ask(GB // 2 + 1).budget_bytes == GB // 2


def test_ranks_of_a_machine_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    verdict = Budget(lambda: 8 * GB).ask(GB)
    assert verdict.why == "1,000 MB exceed a budget of 500 MB, a quarter of the free memory for each of 4 processes"
