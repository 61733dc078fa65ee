"""Every command where its streams are closed, full or of ASCII alone, and where there is no home and no terminal."""

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from command import COMMAND, environment, run
from conftest import DEMO_DATA, Server, poll

from cpstream_client import Client
from cpstream_service.settings import DataSettings
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Snapshot

UNREAD = [
    ["serve", "--help"],
    ["serve", "/no/such/folder", "--port", "0"],
    ["check", str(DEMO_DATA)],
    ["info", "localhost:8000"],
    ["srve"],
]
STREAMS = [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "| true", "2>&1 | true"]
NO_HOME = "import pwd; pwd.getpwuid = {}.__getitem__; from cpstream_service.__main__ import main; main()"


def shell(line: str, *arguments: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command with the redirections of `line`, by a real shell. Its exit code is the command's."""
    script = f'set -o pipefail; "$@" {line}'
    variables = environment(CPSTREAM_SNAPSHOT_DIR=str(folder), **env)
    return subprocess.run(["bash", "-c", script, "bash", *COMMAND, *arguments], env=variables, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", UNREAD, ids=" ".join)
def test_streams_that_take_nothing(arguments: list[str], tmp_path: Path) -> None:
    def tried(line: str) -> subprocess.CompletedProcess[str]:
        return shell(line, *arguments, folder=tmp_path)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        results = list(threads.map(tried, STREAMS))
    for line, done in zip(STREAMS, results, strict=True):
        assert "Traceback" not in done.stderr, line
        assert "Exception ignored" not in done.stderr, line
        assert done.returncode in (0, 1, 2, 128 + 13), line
        if line == ">/dev/full" and "cpstream: " not in done.stderr:  # unless there was nothing to say
            assert done.returncode == 0


def test_a_full_disk_for_the_output_is_told(tmp_path: Path) -> None:
    done = shell(">/dev/full", "check", str(DEMO_DATA), folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "cpstream: standard output: No space left on device; check the path, its permissions and its disk\n"


@pytest.mark.parametrize("line", [">&-", "<&- >&- 2>&-"])
def test_a_service_without_streams_serves(line: str, tmp_path: Path) -> None:
    """What is printed, be it by a library, must not land in the file or socket that got the stream's number."""
    closed = {">&-": (1,), "<&- >&- 2>&-": (0, 1, 2)}[line]
    options = ["--source-path", str(DEMO_DATA), "--snapshot-dir", str(tmp_path), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen([*COMMAND, "serve", *options], env=environment(), preexec_fn=lambda: [os.close(n) for n in closed])
    try:
        poll(lambda: ports_of(process.pid))
        (port,) = ports_of(process.pid)
        assert Client(f"http://127.0.0.1:{port}").split("train").num_samples == 1800  # retries until it is there
        for number in closed:
            assert os.readlink(f"/proc/{process.pid}/fd/{number}") == os.devnull
        process.terminate()
        assert process.wait(90) == 0
    finally:
        process.kill()
        process.wait()


def ports_of(pid: int) -> list[int]:
    """Those at which a process listens, as the kernel has them: this one cannot say its own."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(os.readlink(descriptor))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]


def test_names_that_ascii_lacks_are_escaped(snapshot: Snapshot, run_server: Callable[..., Server]) -> None:
    split = snapshot.splits["dev"]
    named = replace(split, name="дев", info=split.info.model_copy(update={"split": "дев"}))
    server = run_server(snapshot=replace(snapshot, splits={"дев": named}))
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run("info", server.url, **ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u0434\u0435\u0432" in done.stdout
    for encoding in (ascii_only, {}):
        done = run("info", server.url, "--json", **encoding)
        assert json.loads(done.stdout)[0]["split"] == "дев"


@pytest.mark.parametrize("arguments", [*UNREAD, ["--install-completion"]], ids=" ".join)
def test_no_home_and_no_terminal(arguments: list[str], tmp_path: Path) -> None:
    for env in ({"HOME": "/proc/none"}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}):
        if arguments == ["--install-completion"] and env.get("HOME") != "/proc/none":
            continue  # it would write to the home folder of whoever runs the tests
        variables = environment(CPSTREAM_SNAPSHOT_DIR=str(tmp_path), **env)
        variables.pop("TERM", None)
        done = subprocess.run([*COMMAND, *arguments], env=variables, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr, env
        assert done.returncode in (0, 1, 2), env


def test_a_user_without_home_is_told_where_one_is_needed(tmp_path: Path) -> None:
    """As in a container that runs under a number: `check` needs no folder, `serve` one for its snapshot."""
    variables = environment()
    variables.pop("HOME", None)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", NO_HOME, *arguments], env=variables, cwd=tmp_path, capture_output=True, text=True
        )

    assert call("check", str(DEMO_DATA)).returncode == 0
    assert call("--help").returncode == 0
    done = call("serve", str(DEMO_DATA), "--host", "127.0.0.1", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "cpstream: snapshot_dir is '~/.cache/cpstream', and the user has no home folder; set HOME, or it to another folder "
        "(--snapshot-dir, CPSTREAM_SNAPSHOT_DIR)"
    )
    assert not list(tmp_path.iterdir())


def test_a_home_folder_in_a_variable_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands the ~ of a compose file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    load(DataSettings(source_path=DEMO_DATA, snapshot_dir=Path("~/snapshots")))
    assert list(tmp_path.glob("snapshots/*/manifest.json"))


def test_a_url_without_its_scheme_is_told_what_it_may_be() -> None:
    for arguments in (["info", "localhost:8000"], ["plan", "data:8000", "train"]):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"cpstream: url is '{arguments[1]}'; it must look like http://data:8000; did you mean http://{arguments[1]}?\n"
        )
    with pytest.raises(ValueError, match=r"url is 'data'; it must look like http://data:8000; did you mean http://data\?"):
        Client("data")


def test_a_file_that_is_no_source_is_told_what_was_expected(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# a page")
    done = run("check", str(page))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"cpstream: {page} is neither a folder that holds numpy_embs.npy nor a .npy file; set --source-path to one, "
        "or --source-type to what it is\n"
    )


@pytest.mark.parametrize("call", ["load('dev')", "frame('dev')"])
def test_a_bar_is_drawn_for_a_terminal_alone(call: str, server: Server) -> None:
    program = f"import sys; from cpstream_client import Client, progress; progress.DELAY_S = 0; Client(sys.argv[1]).{call}"
    command = [sys.executable, "-c", program, server.url]
    assert subprocess.run(command, capture_output=True, check=True).stderr == b""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # tqdm draws nothing where there is no room
    subprocess.run(command, stderr=theirs, check=True)
    assert b"downloading dev" in os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)


def test_ctrl_c_while_it_is_imported_is_no_traceback() -> None:
    program = "import sys, signal; sys.modules['cyclopts'] = None; from cpstream_service import __main__ as m; m._NEEDED = ()\n"
    program += "import builtins; real = builtins.__import__\n"
    program += "def stop(name, *rest, **more):\n    if name == 'cyclopts': signal.raise_signal(signal.SIGINT)\n"
    program += "    return real(name, *rest, **more)\n"
    program += "builtins.__import__ = stop; m.main()"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")
