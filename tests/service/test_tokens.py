"""The file of tokens: what it may hold, and what is said of one that is wrong, in one line and without a token."""

from hashlib import sha256
from pathlib import Path

import pytest
from command import run

from cpstream_service.setting_errors import SettingsError
from cpstream_service.settings import ServeSettings
from cpstream_service.tokens import tokens_of

SECRET = "s3cr3t-0f-0urs"
HASH = sha256(SECRET.encode()).hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def test_tokens_by_name_value_and_hash(path: Path) -> None:
    path.write_text(
        f"""\ufeff# of the speech team
[trainers]
token = ["new-one", " old-one "]

["team.ops"]   # a dot belongs in quotes
sha256 = "{HASH.upper()}"
scopes = ["metrics", "admin"]
"""
    )
    tokens = tokens_of("th3-one", path)
    found = {value: tokens.find(value.encode()) for value in ("new-one", "old-one", SECRET, "th3-one", "", "new-on", HASH)}
    assert {value: token and (token.name, set(token.scopes)) for value, token in found.items()} == {
        "new-one": ("trainers", {"read"}),
        "old-one": ("trainers", {"read"}),
        SECRET: ("team.ops", {"metrics", "admin"}),
        "th3-one": ("default", {"read", "write", "metrics", "admin"}),
        "": None,
        "new-on": None,
        HASH: None,
    }
    assert not any(value in repr(tokens) for value in ("new-one", "th3-one", HASH))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "which holds no token; leave it out to serve without"),
        ("# nothing yet\n", "which holds no token"),
        (f"alice:read:{SECRET}\n", 'line 1 is wrong: it must be TOML, as in [trainers] and, below, token = "..."'),
        (f'[a]\ntoken = "{SECRET}\n', "line 2 is wrong: it must be TOML"),
        (f"[a]\ntoken = {SECRET}\n", "line 2 is wrong: it must be TOML"),
        (f'token = "{SECRET}"\n', "it has a member outside of a table; begin each token with its name"),
        (f'"{SECRET}" = "read"\n', "it has a member outside of a table"),
        (f'[a]\ntoken = "{SECRET}"\n[a]\ntoken = "x"\n', "line 3 is wrong: it gives a name twice"),
        (f'[a]\ntoken = "{SECRET}"\ntoken = "x"\n', "line 3 is wrong: it gives a name twice"),
        (f'[a]\ntoken = "x"\n\n[b]\ntoken = "{SECRET}"\n[c]\nsha256 = "{HASH}"\n', "[c] in line 6 has the token of [b]; give each"),
        (f'[a]\ntoken = ["{SECRET}", "{SECRET}"]\n', "[a] in line 1 has the same token twice; leave one out"),
        ('[a]\ntoken = " "\n', "[a] in line 1 has a token that is empty"),
        ('[a]\ntoken = ["x", ""]\n', "[a] in line 1 has a token that is empty"),
        ('[a]\ntoken = "s3cr3t\\nx"\n', "[a] in line 1 has a token that has a line break"),
        ("[a]\ntoken = []\n", "[a] in line 1 has a token that is no text; put it in quotes, or several in a list"),
        ("[a]\ntoken = 12345\n", "[a] in line 1 has a token that is no text"),
        ('[a]\nscopes = ["read"]\n', "[a] in line 1 must have either token or sha256"),
        (f'[a]\ntoken = "{SECRET}"\nsha256 = "{HASH}"\n', "[a] in line 1 must have either token or sha256"),
        (f'[a]\nsha256 = "{SECRET}"\n', "[a] in line 1 has a sha256 that is not 64 hexadecimal digits; printf %s"),
        (f'[a]\ntoken = "{SECRET}"\nscopes = ["raed"]\n', "[a] in line 1 has scopes with 'raed'; they must be a list of some"),
        (f'[a]\ntoken = "{SECRET}"\nscopes = "read"\n', "[a] in line 1 has scopes with 'read'; they must be a list"),
        (f'[a]\ntoken = "{SECRET}"\nscopes = []\n', "[a] in line 1 has scopes with none; they must be a list"),
        (f'[a]\ntoken = "{SECRET}"\nscope = ["read"]\n', "[a] in line 1 has a member that is none of token, sha256, scopes"),
        (f'[a]\n{SECRET} = "x"\n', "[a] in line 1 has a member that is none of"),
        (f'["a b {SECRET}"]\ntoken = "x"\n', "it has a token whose name is not of 1 to 64 letters, digits"),
        (f'[default]\ntoken = "{SECRET}"\n', "[default] is the name of the token that is set beside it; choose another"),
        ('[a]\ntoken = "th3-one"\n', "[a] is the token that is set beside it, with all scopes; leave one out"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_said_in_one_line_without_a_token(path: Path, text: str, says: str) -> None:
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        ServeSettings(token="th3-one", tokens_file=path)
    message = str(caught.value)
    assert message.startswith(f"tokens_file is '{path}', ")
    assert says in message
    assert message.endswith("(CPSTREAM_TOKENS_FILE)")
    assert "\n" not in message
    assert not any(value in message for value in (SECRET, HASH, "th3-one", "s3cr3t"))


def test_what_is_no_file_of_tokens(path: Path) -> None:
    for what, says in [
        (path, "No such file or directory; it must be a TOML file of tokens"),
        (path.parent, "Is a directory"),
        (Path("/dev/zero"), "longer than 1048576 bytes"),
        (Path(__file__).parents[1] / "files" / "chroma-0.4.14.zip", "not UTF-8 text"),
    ]:
        with pytest.raises(SettingsError, match=says):
            ServeSettings(tokens_file=what)


def test_a_service_does_not_start_with_a_wrong_file(path: Path) -> None:
    path.write_text(f'[a]\ntoken = "{SECRET}"\nscopes = ["all"]\n')
    done = run("serve", "/no/such", CPSTREAM_TOKENS_FILE=str(path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "[a] in line 1 has scopes with 'all'" in done.stderr
