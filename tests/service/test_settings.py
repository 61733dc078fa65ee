"""Settings and the command line that sets them: what is refused is said in one line, by its name, value, range and variable."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import DEMO_DATA
from data import run_python

from cpstream_service.cli.app import run, variables
from cpstream_service.setting_errors import SettingsError
from cpstream_service.settings import DataSettings, ServeSettings

SMALL_PNG = DEMO_DATA.parents[2] / "docs" / "images" / "benchmark.png"


def complaint(
    arguments: list[str], env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str]:
    """Exit code and the line on stderr of a command."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("cpstream: ")
    assert err.count("\n") == 1, err
    return ended.value.code, err


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["serve", "A", "B"], {}, ["'B'", "cpstream serve --help"]),
        (["check", "A", "--source-path", "B"], {}, ["'A'", "--source-path 'B'", "leave one out"]),
        (["check", "--splits", "train,"], {}, ["splits holds an empty name", "CPSTREAM_SPLITS"]),
        (["check", "--splits"], {}, ["--splits", "cpstream check --help"]),
        (["check", "--cps-csv", "{spilt}.csv"], {}, ["{spilt} stands for nothing", "{split}", "CPSTREAM_CPS_CSV"]),
        (["plan", "http://127.0.0.1:1"], {}, ["plan", "--split", "cpstream plan --help"]),
        (["info", "data:8000"], {}, ["url is 'data:8000'", "http://data:8000"]),
        (["info", "--token", "s3c\nret"], {}, ["the token has a line break"]),
        (["plan", "http://data:8000", "dev", "--shuffle", "yes"], {}, ['"yes"', "--shuffle", "uniform", "cpstream plan --help"]),
        (["info"], {"CPSTREAM_TOKEN_FILE": "/no/such"}, ["'/no/such'", "CPSTREAM_TOKEN_FILE"]),
        (["serve"], {"CPSTREAM_STRICT": "maybe"}, ["--strict", '"maybe"', "true or false"]),
        (["serve", "--source-type", "csv"], {}, ["--source-type", '"csv"', "npy, chromadb"]),
        (["serve", "--drain-timeout-s", "inf"], {}, ["drain_timeout_s is inf", "0 or more"]),
        (["serve", "--trusted-proxies", "10.0.0.0/8,haproxy"], {}, ["holds 'haproxy'", "CPSTREAM_TRUSTED_PROXIES"]),
        (["serve", "--max-streams-per-client", "0"], {}, ["max_streams_per_client is 0; it must be 1 or more"]),
        (["serve", "--stall-timeout-s", "0"], {}, ["stall_timeout_s is 0", "it must be 1 or more"]),
        (["serve", "--token", " \n"], {}, ["token is empty", "CPSTREAM_TOKEN"]),
        (["serve", "--token", "s3c\nret"], {}, ["token has a line break", "CPSTREAM_TOKEN"]),
        (["serve", "--token-file", "/no/such"], {}, ["'/no/such'", "No such file", "CPSTREAM_TOKEN_FILE"]),
        (["serve", "--token-file", "/"], {}, ["token_file is '/'", "Is a directory"]),
        (["serve", "--token-file", "/dev/null"], {}, ["'/dev/null'", "is empty"]),
        (["serve", "--token-file", __file__], {"CPSTREAM_TOKEN": "x"}, ["test_settings.py'", "line break"]),
        (["serve", "--token-file", str(SMALL_PNG)], {}, ["benchmark.png'", "longer than 16384 bytes"]),
    ],
)
def test_what_is_refused_is_said_in_one_line(
    arguments: list[str],
    env: dict[str, str],
    says: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, err = complaint(arguments, env, monkeypatch, capsys)
    assert code == 2
    for words in says:
        assert words in err
    assert "s3c" not in err


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"port": 70000}, r"port is 70000; it must be from 0 to 65535 \(--port, CPSTREAM_PORT\)"),
        ({"port": "x"}, r'port is "x"; it must be a whole number, from 0 to 65535 '),
        ({"max_streams": 1.5}, "max_streams is 1.5; it must be a whole number, 1 or more "),
        ({"drain_timeout_s": -1}, "drain_timeout_s is -1; it must be 0 or more "),
        ({"log_level": "loud"}, 'log_level is "loud"; it must be one of debug, info, warning, error '),
        ({"host": None}, "host is None; it must be text "),
        ({"prot": 1}, "prot is no setting; settings: .* port"),
        ({"port": -1, "workers": 0}, "port is -1; .*; workers is 0; "),
    ],
)
def test_a_python_caller_gets_the_same_words(values: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=f"^{says}"):
        ServeSettings(**values)  # type: ignore[arg-type]


def test_a_template_may_hold_braces_that_are_no_name() -> None:
    assert DataSettings(cps_csv="/data/{2024}/{split}.csv").cps_csv == "/data/{2024}/{split}.csv"


def test_the_token_is_stripped_read_from_its_file_and_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_bytes(b"\xef\xbb\xbfs3cret-\xc3\xa9 \r\n")
    settings = ServeSettings(token_file=secret)
    assert settings.token == "s3cret-é" == ServeSettings(token=" s3cret-é\n").token
    assert "s3cret" not in repr(settings)
    assert replace(settings, port=1).token == settings.token
    with pytest.raises(SettingsError, match="token and token_file are both given, and differ"):
        replace(settings, token="another")
    secret.unlink()
    assert pickle.loads(pickle.dumps(settings)) == settings  # as a worker process gets them


def test_variables_are_those_of_the_options() -> None:
    assert {"CPSTREAM_PORT", "CPSTREAM_SPLITS", "CPSTREAM_URL", "CPSTREAM_CHROMA_PATH", "CPSTREAM_TOKEN_FILE"} <= variables()
    assert not {"CPSTREAM_FOLDER", "CPSTREAM_JSON"} & variables()


def test_importing_the_command_line_reads_no_environment() -> None:
    run_python("""
import collections.abc, os

class Watched(dict):
    def get(self, name, default=None):
        assert not name.startswith(("CPSTREAM_", "XDG_")), name
        return super().get(name, default)

    __getitem__ = get

os.environ = Watched(os.environ)
import cpstream_service.cli.app, cpstream_service.app
""")
