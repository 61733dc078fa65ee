"""TLS of the service itself, and what SIGHUP has it read again: certificates and tokens, of every worker, under running streams."""

import socket
import ssl
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import trustme
from command import Service, run, serve, workers_of
from conftest import grown, poll, serving

from cpstream_client import Client, Retry, UnauthorizedError, UnreachableError
from cpstream_service.app import create_app
from cpstream_service.connections import Connection
from cpstream_service.setting_errors import SettingsError
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

ONCE = Retry(timeout_s=0, contact_timeout_s=0)


class Authority:
    """A CA. ca: the path of its certificate; issue(path): a certificate of this machine's, with its key."""

    def __init__(self, folder: Path, name: str) -> None:
        self._authority, self.ca = trustme.CA(), folder / f"{name}-ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))
        self.trust = ssl.create_default_context(cafile=str(self.ca))

    def issue(self, path: Path) -> Path:
        self._authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(str(path))
        path.chmod(0o600)
        return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder, "old"), Authority(folder, "new")


def splits(url: str, authority: Authority, token: str | None = None, cert: str | None = None) -> str:
    """What becomes of a request on a connection of its own: "served", or the name of the error."""
    try:
        with Client(url, token=token, verify=authority.ca, cert=cert, retry=ONCE) as client:
            client.splits()
    except (UnauthorizedError, UnreachableError) as error:
        return type(error).__name__
    return "served"


def hang_up(service: Service, told: str, workers: int = 1) -> None:
    """SIGHUP, and wait until each worker has said so."""
    before = service.log.read_text().count(told)
    service.process.send_signal(1)
    poll(lambda: service.log.read_text().count(told) == before + workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_tokens_and_certificates_are_read_again(tmp_path: Path, pair: tuple[Authority, Authority], workers: int) -> None:
    old, new = pair
    pem, tokens = old.issue(tmp_path / "server.pem"), tmp_path / "tokens.toml"
    tokens.write_text('[trainers]\ntoken = "0ld-one"\n')
    tokens.chmod(0o644)
    settings = ["--tls-cert-file", str(pem), "--tokens-file", str(tokens), "--workers", str(workers)]
    with serve(tmp_path, *settings, verify=old.trust) as service:
        url, processes = service.url, [service.process.pid, *workers_of(service)]
        assert url.startswith("https://")
        assert f"{tokens}: every user of this machine can read what it holds (mode 644): chmod o-r it" in service.log.read_text()
        assert str(pem) not in service.log.read_text()
        with Client(url, token="0ld-one", verify=old.ca) as trainer:
            stream = trainer.batches("train", batch_size=64)
            indices = [next(stream).index]
            tokens.write_text('[trainers]\ntoken = ["n3w-one", "0ld-one"]\n')  # both, until everybody has the new one
            new.issue(pem)
            hang_up(service, "SIGHUP: read again, tokens: changed trainers, certificates", workers)
            indices += [batch.index for batch in stream]
            assert np.array_equal(np.concatenate(indices), np.arange(1800))
        for token in ("0ld-one", "n3w-one"):
            assert {splits(url, new, token) for _ in range(8)} == {"served"}
        assert {splits(url, old, "n3w-one") for _ in range(4)} == {"UnreachableError"}
        tokens.write_text('[trainers]\ntoken = "n3w-one"\n[ops]\ntoken = "0ps"\nscopes = ["admin"]\n')
        hang_up(service, "tokens: added ops; changed trainers, certificates", workers)
        assert {splits(url, new, "0ld-one") for _ in range(8)} == {"UnauthorizedError"}
        pem.write_text("nothing")
        hang_up(service, f"SIGHUP: tls_cert_file is '{pem}': there is no certificate, or no key (--tls-key-file)", workers)
        new.issue(pem)
        tokens.write_text('[trainers]\ntoken = "n3w-one"\n[ops]\ntoken = "n3w-one"\n')
        hang_up(service, "has the token of [trainers]; give each its own; tokens and certificates stay as they were", workers)
        assert {splits(url, new, "n3w-one") for _ in range(8)} == {"served"}
        assert [service.process.pid, *workers_of(service)] == processes
        assert not any(token in service.log.read_text() for token in ("0ld-one", "n3w-one", "0ps"))
        assert "Traceback" not in service.log.read_text()
        done = run("info", url, CPSTREAM_CA_BUNDLE=str(new.ca), CPSTREAM_TOKEN="n3w-one")
        assert done.returncode == 0, done.stderr
        assert run("info", url, "--ca-bundle", str(new.ca), "--token", "n3w-one").returncode == 0
        refused = run("info", url, CPSTREAM_TOKEN="n3w-one")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
        assert "certificate is not trusted" in refused.stderr


def test_a_token_file_is_read_again(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("0ld-one\n")
    with serve(tmp_path, "--token-file", str(secret)) as service:
        secret.write_text("n3w-one\n")
        hang_up(service, "SIGHUP: read again, tokens: changed default")
        for token, status in (("0ld-one", 401), ("n3w-one", 200)):
            assert httpx.get(f"{service.url}/v1/splits", headers={"Authorization": f"Bearer {token}"}).status_code == status
        secret.unlink()
        hang_up(service, f"SIGHUP: token_file is '{secret}': No such file or directory")
        assert httpx.get(f"{service.url}/v1/splits", headers={"Authorization": "Bearer n3w-one"}).status_code == 200


def test_client_certificates(tmp_path: Path, pair: tuple[Authority, Authority]) -> None:
    """Those of one CA, and after a SIGHUP of another; health checks, which have none, go on."""
    old, new = pair
    pem, ca = old.issue(tmp_path / "server.pem"), tmp_path / "clients.pem"
    mine, others = (str(authority.issue(tmp_path / f"{i}.pem")) for i, authority in enumerate(pair))
    ca.write_bytes(old.ca.read_bytes())
    with serve(tmp_path, "--tls-cert-file", str(pem), "--tls-client-ca-file", str(ca), verify=old.trust) as service:
        url = service.url
        assert (splits(url, old, cert=mine), splits(url, old, cert=others)) == ("served", "UnreachableError")
        with Client(url, verify=old.ca, retry=ONCE) as client, pytest.raises(UnauthorizedError, match="wants a client certificate"):
            client.splits()
        with httpx.Client(base_url=url, verify=old.trust) as http:
            assert http.get("/readyz").json() == {"status": "ready"}
            assert http.get("/livez").status_code == 200
            for path in ("/", "/docs", "/metrics", "/v1/splits", "/nothing"):
                assert http.get(path).status_code == 403, path
        ca.write_bytes(new.ca.read_bytes())
        hang_up(service, "SIGHUP: read again, certificates")
        assert (splits(url, old, cert=mine), splits(url, old, cert=others)) == ("UnreachableError", "served")
        done = run("info", url, CPSTREAM_CA_BUNDLE=str(old.ca), CPSTREAM_CLIENT_CERT=others)
        assert done.returncode == 0, done.stderr


def files(pair: tuple[Authority, Authority], folder: Path) -> dict[str, Path]:
    """Of all kinds, by what they are."""
    from cryptography.hazmat.primitives import serialization as s

    made = {name: pair[0].issue(folder / f"{name}.pem") for name in ("whole", "other")}
    text = made["whole"].read_text()
    at = text.index("-----BEGIN CERTIFICATE")
    key = s.load_pem_private_key(text[:at].encode(), None)
    locked = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"p"))
    contents = {"cert": text[at:], "key": text[:at], "locked": locked.decode(), "empty": "", "absent": None}
    for name, content in contents.items():
        made[name] = folder / f"{name}.pem"
        if content is not None:
            made[name].write_text(content)
    return made


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"cert": "whole"}, None),
        ({"cert": "cert", "key": "key", "client_ca": "cert"}, None),
        ({"cert": "absent"}, "tls_cert_file is {cert!r}: No such file or directory; it must be a PEM file"),
        ({"cert": "cert"}, "tls_cert_file is {cert!r}: there is no certificate, or no key (--tls-key-file); it must"),
        ({"cert": "empty"}, "there is no certificate, or no key"),
        ({"cert": "cert", "key": "absent"}, "tls_key_file is {key!r}: No such file"),
        ({"cert": "cert", "key": "cert"}, "and tls_key_file is {key!r}: there is not both a certificate and its key"),
        ({"cert": "cert", "key": "other"}, "tls_key_file is {key!r}, which is not the key of the certificate in {cert!r}"),
        ({"cert": "cert", "key": "locked"}, "the key is encrypted; write it without a password: openssl pkey -in"),
        ({"cert": "whole", "client_ca": "key"}, "tls_client_ca_file is {client_ca!r}, which holds no certificate"),
        ({"cert": "whole", "client_ca": "absent"}, "tls_client_ca_file is {client_ca!r}: No such file"),
        ({"key": "key"}, "tls_key_file is {key!r}, and there is no certificate; give it, too (--tls-cert-file, "),
        ({"client_ca": "cert"}, "tls_client_ca_file is {client_ca!r}, and there is no certificate"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_said_in_one_line(
    tmp_path: Path, pair: tuple[Authority, Authority], given: dict[str, str], says: str | None
) -> None:
    made = files(pair, tmp_path)
    named = {name: made[kind] for name, kind in given.items()}
    settings = {f"tls_{name}_file": path for name, path in named.items()}
    if says is None:
        assert ServeSettings(**settings).tls_cert_file  # type: ignore[arg-type]
        return
    with pytest.raises(SettingsError) as caught:
        ServeSettings(**settings)  # type: ignore[arg-type]
    assert says.format(**{name: str(path) for name, path in named.items()}) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reader_over_tls_that_stops_is_let_go(
    snapshot: Snapshot, tmp_path: Path, pair: tuple[Authority, Authority], caplog: pytest.LogCaptureFixture
) -> None:
    """Within its reply, and where all of that has been encrypted, and waits in the transport below."""
    pem, app = pair[0].issue(tmp_path / "server.pem"), create_app(grown(snapshot, "train", 60_000), ServeSettings())
    with serving(app, http=partial(Connection, stall_timeout_s=3.0), ssl_certfile=str(pem)) as url:
        for path in ("/v1/splits/train/batches", "/v1/splits/train/rows?length=1000&embedding=true"):
            with socket.socket() as plain:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                plain.connect(("127.0.0.1", int(url.rpartition(":")[2])))
                with pair[0].trust.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
                    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                    assert sock.recv(12) == b"HTTP/1.1 200"
                    poll(lambda: "took nothing of its reply for 3 s" in caplog.text)
            caplog.clear()
