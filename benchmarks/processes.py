"""Child processes that always end: when their block does, however that comes."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

T = TypeVar("T")


class ChildFailed(Exception):
    """A child process ended, or never became ready. The message ends with the last of its output."""


@contextmanager
def running(
    command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, cgroup: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command, its output in `log`; at the end SIGTERM, and SIGKILL if that does not help. cgroup: where it shall live."""
    command = within(cgroup, command)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        end(process)


@contextmanager
def talking(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cgroup: Path | None = None, namespace: str = ""
) -> Iterator["subprocess.Popen[str]"]:
    """Run a command that is told lines on its stdin and says lines on its stdout. namespace: of the network where it shall live."""
    command = within(cgroup, [*(("ip", "netns", "exec", namespace) if namespace else ()), *command])
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end(process)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def helper(module: str, *arguments: str, cgroup: Path | None = None, namespace: str = "") -> Iterator["subprocess.Popen[str]"]:
    """Run a module of this package; its answers are lines on its stdout."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    with talking(command, cgroup=cgroup, namespace=namespace) as process:
        yield process


def ask(process: "subprocess.Popen[str]", wish: Mapping[str, Any], timeout_s: float = START_TIMEOUT_S) -> Any:
    """Tell it a line of JSON; its answer, which is one. Raises ChildFailed."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(wish) + "\n")
    process.stdin.flush()
    return json.loads(first_line(process, timeout_s))


def first_line(process: "subprocess.Popen[str]", timeout_s: float = START_TIMEOUT_S) -> str:
    """The next line that a helper says. Raises ChildFailed."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], timeout_s)
    line = process.stdout.readline() if ready else ""
    if not line:
        raise ChildFailed(f"{' '.join(map(str, process.args))}: no answer, exit code {process.poll()}")  # type: ignore[arg-type]
    return line.strip()


def answer(command: Sequence[str], timeout_s: float = 600.0, env: Mapping[str, str] | None = None) -> str:
    """The stdout of a command that ends by itself. Raises ChildFailed."""
    done = subprocess.run(command, cwd=ROOT, env=environment(env), capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        raise ChildFailed(f"{' '.join(command[:4])} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout


def wait_for(
    condition: Callable[[], T | None], process: "subprocess.Popen[bytes]", log: Path, timeout_s: float = START_TIMEOUT_S
) -> T:
    """Poll until condition() is something. Raises ChildFailed when the process ends before, or time does."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value is not None:
            return value
        if process.poll() is not None or time.monotonic() > deadline:
            raise ChildFailed(f"{log.stem} did not become ready, exit code {process.poll()}: {log.read_text()[-400:].strip()}")
        time.sleep(0.002)


def within(cgroup: Path | None, command: Sequence[str]) -> Sequence[str]:
    """The command as one that joins the cgroup first."""
    return command if cgroup is None else ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(cgroup), *command]


def cpu_s(pid: int) -> float:
    """What a process has used, in steps of a tick of the kernel's."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def free_port() -> int:
    """A port that nobody listens on, for programs that cannot choose one themselves."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def end(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """End a process and its children, which are its process group: we started it as the leader of one."""
    for number, patience_s in ((signal.SIGTERM, _STOP_TIMEOUT_S), (signal.SIGKILL, _STOP_TIMEOUT_S)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(patience_s)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of cpstream, which would change what is measured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CPSTREAM_")}
    return {**kept, **(more or {})}
