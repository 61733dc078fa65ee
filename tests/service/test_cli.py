"""The command as people and orchestrators use it: real processes, real signals, exit codes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import httpx
import pytest
from command import answers, children_of, environment, is_alive, run, serve, workers_of
from conftest import DEMO_DATA, Server, poll, stalled_stream
from data import make_rows, write_cps, write_dataset

from cpstream_client.contract.plan import Plan
from cpstream_service.cli.app import unknown_variables
from cpstream_service.settings import DataSettings, ServeSettings

ONLY_CLI = [sys.executable, str(Path(__file__).parents[1] / "only_cli.py")]


def test_help_names_every_command_option_and_variable() -> None:
    top = run("--help")
    assert top.returncode == 0
    for command in ("serve", "check", "prepare", "ingest", "info", "plan"):
        assert re.search(rf"^. {command} ", top.stdout, re.MULTILINE), command
    text = run("serve", "--help").stdout
    for spec in (*fields(DataSettings), *fields(ServeSettings)):
        assert f"--{spec.name.replace('_', '-')}" in text
    flat = re.sub(r"[\s│]+", "", text)
    for spec in (*fields(DataSettings), *fields(ServeSettings)):
        assert f"CPSTREAM_{spec.name.upper()}" in flat
    for command in ("serve", "check", "prepare", "ingest", "info", "plan"):
        assert f"cpstream {command}" in run(command, "--help").stdout, "help without an example"


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", run("--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "env", "code", "says"),
    [
        (["serve", "--prot", "1"], {}, 2, ["--prot", "--port"]),
        (["srve"], {}, 2, ["srve"]),
        (["serve", "--port", "x"], {}, 2, ["--port", '"x"']),
        (["serve"], {"CPSTREAM_PORT": "x"}, 2, ["CPSTREAM_PORT", '"x"', "a whole number, from 0 to 65535"]),
        (["serve", "--log-format", "xml"], {}, 2, ["--log-format", "json"]),
        (["serve"], {"CPSTREAM_PORT": "70000"}, 2, ["port is 70000", "65535"]),
        (["serve", "--workers", "0"], {}, 2, ["workers is 0"]),
        (["serve", "--drain-timeout-s", "nan"], {}, 2, ["drain_timeout_s is nan"]),
        (["serve", "--token", ""], {}, 2, ["token is empty"]),
        (["serve", "--source-path", "/no/such/folder", "--port", "0"], {}, 1, ["/no/such/folder", "--source-path"]),
        (["serve", "--host", "no.such.host.invalid"], {}, 3, ["no.such.host.invalid", "--host"]),
        (["info", "http://127.0.0.1:1"], {}, 1, ["http://127.0.0.1:1"]),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    arguments: list[str], env: dict[str, str], code: int, says: list[str], tmp_path: Path
) -> None:
    done = run(*arguments, CPSTREAM_SNAPSHOT_DIR=str(tmp_path), **env)
    assert (done.returncode, done.stdout) == (code, "")
    for words in says:
        assert words in done.stderr
    assert done.stderr.count("\n") == 1, "not one line"
    assert "Traceback" not in done.stderr


def test_a_mistyped_variable_is_pointed_out() -> None:
    assert unknown_variables({"CPSTREAM_PROT": "1", "CPSTREAM_TOKEN": "x", "PATH": "/bin"}) == {
        "CPSTREAM_PROT": "did you mean CPSTREAM_PORT?"
    }


def test_a_port_in_use_has_its_own_exit_code(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run("serve", "--source-path", str(DEMO_DATA), "--snapshot-dir", str(tmp_path), "--host", "127.0.0.1", "--port", port)
    assert done.returncode == 3
    assert port in done.stderr
    assert "--port" in done.stderr


def test_missing_dependencies_are_named_with_the_remedy() -> None:
    for missing, extra, arguments in (("fastapi", "service", "serve"), ("rich", "cli", "info")):
        program = f"import sys; sys.modules[{missing!r}] = None; from cpstream_service.__main__ import main; main()"
        done = subprocess.run([sys.executable, "-c", program, arguments], env=environment(), capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, f"cpstream: missing {missing}; run: pip install 'cpstream[{extra}]'\n")


def test_info_and_plan_need_nothing_but_the_client_and_its_cli_extra(server: Server) -> None:
    """With all packages hidden that `pip install 'cpstream[cli]'` does not bring."""
    for arguments in (["info", server.url], ["info", server.url, "--json"], ["plan", server.url, "dev"]):
        done = subprocess.run([*ONLY_CLI, *arguments], env=environment(), capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert "dev" in done.stdout
    served = subprocess.run([*ONLY_CLI, "serve"], env=environment(), capture_output=True, text=True)
    assert served.returncode == 1
    assert re.fullmatch(r"cpstream: missing \w+; run: pip install 'cpstream\[service\]'\n", served.stderr)


def test_splits_in_every_way_that_they_are_written(tmp_path: Path) -> None:
    expected = {"dev", "train"}
    for arguments, env in (
        (["--splits", "train", "dev"], {}),
        (["--splits", "train,dev"], {}),
        (["--splits=train", "--splits", "dev"], {}),
        ([], {"CPSTREAM_SPLITS": "train,dev"}),
        ([], {"CPSTREAM_SPLITS": "train dev"}),
    ):
        done = run("check", str(DEMO_DATA), *arguments, "--json", **env)
        assert done.returncode == 0, done.stderr
        assert {report["split"] for report in json.loads(done.stdout)} == expected


def test_a_folder_by_its_place_is_the_source_path(tmp_path: Path) -> None:
    assert "train" in run("check", str(DEMO_DATA)).stdout
    assert run("check", str(DEMO_DATA), CPSTREAM_SOURCE_PATH="/no/such").returncode == 0
    for folder in (["/no/such"], ["--source-path", "/no/such"]):
        done = run("check", *folder, CPSTREAM_SOURCE_PATH=str(DEMO_DATA))
        assert done.returncode == 1
        assert "/no/such/numpy_embs.npy" in done.stderr


def test_a_token_file_is_the_token_of_both_sides(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret\n")
    with serve(tmp_path, "--token-file", str(secret)) as service:
        assert run("info", service.url).returncode == 1
        assert run("info", service.url, "--token-file", str(secret)).returncode == 0
        assert run("info", service.url, CPSTREAM_TOKEN_FILE=str(secret)).returncode == 0
        assert httpx.get(f"{service.url}/v1/splits", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert "no token is set" not in service.log.read_text()


def test_sigint_ends_it_cleanly_with_a_readable_log(tmp_path: Path) -> None:
    with serve(tmp_path) as service:
        assert httpx.get(f"{service.url}/v1/splits/dev/batches").status_code == 200
        assert service.stop(signal.SIGINT) == 0
        log = service.log.read_text()
    assert "Traceback" not in log
    assert "ERROR" not in log
    assert "split dev: 300 samples" in log
    assert "GET /v1/splits/dev/batches -> 200" in log


def test_names_of_others_cannot_forge_a_line_of_the_log(tmp_path: Path) -> None:
    name = "tr\nERROR forged\x1b[31m"
    source = write_dataset(tmp_path / "source", {name: make_rows(2)})
    with serve(tmp_path, source=source) as service:
        log = service.log.read_text()
    assert r"split tr\nERROR forged\x1b[31m: 2 samples" in log
    assert not re.search(r"^ERROR|\x1b", log, re.MULTILINE)


def test_what_looks_wrong_is_said_in_the_log(tmp_path: Path) -> None:
    rows = make_rows(4)
    source = write_dataset(tmp_path / "source", {"train": rows})
    paths = [row["file_path"] for row in rows]
    write_cps(source / "train_cps.csv", [(paths[0], 5), (paths[1], 99), *((f"/data/{path}", 6) for path in paths[2:])])
    with serve(tmp_path, source=source) as service:
        service.stop()
        log = service.log.read_text()
    assert re.search(r"WARNING split train: 1 unusual-cps, served \(first: audio/0001.wav: 99.0\)\n", log)
    assert re.search(r"WARNING split train: paths differ by their roots; --map-root /data/= would match 2 rows\n", log)


def test_sigterm_ends_it_cleanly_with_a_json_log_and_no_token_in_it(tmp_path: Path) -> None:
    with serve(tmp_path, CPSTREAM_TOKEN="s3cret", CPSTREAM_LOG_FORMAT="json") as service:
        refused = run("info", service.url)
        assert refused.returncode == 1
        assert "token" in refused.stderr
        assert run("info", service.url, CPSTREAM_TOKEN="s3cret").returncode == 0
        headers = {"X-Request-ID": "abc", "Authorization": "Bearer s3cret"}
        assert httpx.get(f"{service.url}/v1/splits/dev/batches", headers=headers).status_code == 200
        assert service.stop(signal.SIGTERM) == 0
        log = service.log.read_text()
    assert "s3cret" not in log
    entry = next(line for line in map(json.loads, log.splitlines()) if line.get("request_id") == "abc")
    assert (entry["split"], entry["status"], entry["level"], entry["logger"]) == ("dev", 200, "INFO", "cpstream.access")
    assert entry["bytes"] > 0


def test_two_workers_count_together_are_replaced_and_leave_nothing(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", "2") as service:
        for _ in range(12):  # each by a connection of its own, so that both workers get some
            httpx.get(f"{service.url}/v1/splits/dev")
        counted = 'cpstream_requests_total{method="GET",route="/v1/splits/{split}",status="200"} 12.0'
        poll(lambda: counted in httpx.get(f"{service.url}/metrics").text)  # a request counts once its reply has left
        first = workers_of(service)
        os.kill(first[0], signal.SIGKILL)
        poll(lambda: len(set(workers_of(service)) - set(first)) == 1)
        poll(lambda: answers(service.url))
        children = children_of(service.process.pid)
        assert service.stop() == 0
        poll(lambda: not any(map(is_alive, children)))  # multiprocessing's resource tracker ends just after its parent
        assert not list((tmp_path / "tmp").iterdir())
        log = service.log.read_text()
    assert "Traceback" not in log


def test_workers_do_not_outlive_their_supervisor(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", "2") as service:
        workers = workers_of(service)
        service.process.kill()
        service.process.wait()
        poll(lambda: not any(map(is_alive, workers)))


@pytest.mark.parametrize("workers", [1, 2])
def test_draining_refuses_new_work_and_lets_streams_finish(tmp_path: Path, large: Path, workers: int) -> None:
    with serve(tmp_path, "--workers", str(workers), "--drain-timeout-s", "60", source=large) as service, httpx.Client() as http:
        with stalled_stream(service.url, "/v1/splits/train/batches") as stream:
            service.process.send_signal(signal.SIGTERM)
            if workers == 1:
                poll(lambda: http.get(f"{service.url}/readyz").status_code == 503)
                for path in ("/readyz", "/v1/splits"):
                    reply = http.get(service.url + path)
                    assert (reply.status_code, reply.json()["code"]) == (503, "draining")
                    assert int(reply.headers["retry-after"]) >= 1
                assert http.get(f"{service.url}/livez").status_code == 200
            else:
                poll(lambda: "draining" in service.log.read_text())
            assert service.process.poll() is None
            received = b"HTTP/1.1 200" + b"".join(iter(lambda: stream.recv(1 << 20), b""))
        head, _, body = received.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head.lower()
        assert service.process.wait(timeout=90) == 0


def test_draining_ends_in_time_though_a_reader_stalls(tmp_path: Path, large: Path) -> None:
    with serve(tmp_path, "--drain-timeout-s", "0.2", source=large) as service:
        with stalled_stream(service.url, "/v1/splits/train/batches"):
            code = service.stop()
        assert code == 0


def test_a_second_signal_ends_the_drain(tmp_path: Path, large: Path) -> None:
    with serve(tmp_path, "--drain-timeout-s", "600", source=large) as service:
        with stalled_stream(service.url, "/v1/splits/train/batches"):
            service.process.send_signal(signal.SIGTERM)
            poll(lambda: "draining" in service.log.read_text())
            code = service.stop()
        assert code == 0


def test_info_prints_the_splits(server: Server) -> None:
    done = run("info", server.url)
    assert done.returncode == 0, done.stderr
    for split in server.snapshot.splits.values():
        assert split.name in done.stdout
        assert split.fingerprint in done.stdout
        assert f"{split.info.cps.mean:.2f}" in done.stdout


def test_plan_prints_who_got_what(server: Server) -> None:
    done = run(
        "plan", server.url, "dev", "--step", "2", "--batch-size", "3", "--world-size", "2", "--shuffle", "uniform", "--seed", "9"
    )
    assert done.returncode == 0, done.stderr
    epoch = Plan(300, batch_size=3, shuffle="uniform", seed=9, world_size=2)
    for rank in range(2):
        for index in replace(epoch, rank=rank).batch(epoch.order(), 2):
            assert re.search(rf"^. {rank} .* {index} ", done.stdout, re.MULTILINE)
            assert server.snapshot.splits["dev"].file_paths[int(index)].as_py() in done.stdout
    past = run("plan", server.url, "dev", "--step", "99")
    assert past.returncode == 1
    assert "step is 99" in past.stderr
