"""TLS of the service: its certificate and key, and the CA of its clients' certificates, from PEM files."""

import ssl
from pathlib import Path

_PEM = "it must be a PEM file"


def server_context(cert: Path, key: Path | None = None, client_ca: Path | None = None) -> ssl.SSLContext:
    """A context with these files, TLS 1.2 and newer. Raises ValueError, which names the setting, the file and the remedy.

    cert: the certificate and the chain behind it, and the key as well unless this is in `key`. A client's certificate is asked for
    where `client_ca` is given, and the connection ends if that has not issued it; without one it goes on, for health checks.
    """
    for name, path in (("tls_cert_file", cert), ("tls_key_file", key), ("tls_client_ca_file", client_ca)):
        if path is not None:
            _check_readable(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_refuse_to_ask)
    except ssl.SSLError as error:
        raise ValueError(_of_chain(cert, key, error)) from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError:
            raise ValueError(
                f"tls_client_ca_file is {str(client_ca)!r}, which holds no certificate; {_PEM} of CA certificates"
            ) from None
        context.verify_mode = ssl.CERT_OPTIONAL
        # A session that is taken up again would not show its certificate again, whatever has become of the CA.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _check_readable(name: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ValueError(f"{name} is {str(path)!r}: {error.strerror}; {_PEM}") from None


def _refuse_to_ask() -> str:
    """OpenSSL would ask the terminal for the password of an encrypted key."""
    raise ValueError("the key is encrypted; write it without a password: openssl pkey -in KEY -out PLAIN, mode 600")


def _of_chain(cert: Path, key: Path | None, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls_key_file is {str(key or cert)!r}, which is not the key of the certificate in {str(cert)!r}; give that"
    which = f"tls_cert_file is {str(cert)!r}" + (f" and tls_key_file is {str(key)!r}" if key else "")
    lacks = "not both a certificate and its key" if key else "no certificate, or no key (--tls-key-file)"
    return f"{which}: there is {lacks}; {_PEM} each"


class Cipher:
    """What a service with this context sends over a connection, without the connection."""

    def __init__(self, context: ssl.SSLContext) -> None:
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # both ends are this process
        there, self._sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ours = context.wrap_bio(there, self._sent, server_side=True)
        theirs = trusting.wrap_bio(self._sent, there)
        waiting = [theirs, self._ours]
        while waiting:
            end = waiting.pop(0)
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting.append(end)
        self._sent.read()

    def encrypted(self, data: memoryview) -> bytes:
        self._ours.write(data)
        return self._sent.read()
