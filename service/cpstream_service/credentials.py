"""Tokens and certificates of one process, as their files were when they were last read."""

import logging
import ssl
import stat
from collections.abc import Iterator

from cpstream_client.contract.token import read_token

from .settings import ServeSettings
from .tls import server_context
from .tokens import Tokens, tokens_of

logger = logging.getLogger("cpstream.service")


class Credentials:
    """tokens: those that are valid now; context: for TLS, or None. Copies for other processes read the files themselves.

    Raises ValueError where a file has become wrong since the settings were made.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self.tokens = self._read_tokens()
        self.context = self._newest = self._read_context()
        if self.context is not None:
            self.context.sni_callback = self._hand_over  # called for each handshake, whether it names a server or not

    def __reduce__(self) -> tuple[type["Credentials"], tuple[ServeSettings]]:
        return type(self), (self._settings,)

    def read_again(self) -> None:
        """Take what the files hold now for what begins from here on. Where one is wrong, all stays as it was."""
        settings = self._settings
        if not (settings.token_file or settings.tokens_file or settings.tls_cert_file):
            logger.info("SIGHUP: there is nothing to read again; data is read at the start")
            return
        try:
            tokens, context = self._read_tokens(), self._read_context()
        except ValueError as error:
            logger.error("SIGHUP: %s; tokens and certificates stay as they were", error)
            return
        changes = _changes(self.tokens, tokens)
        self.tokens, self._newest = tokens, context
        logger.info("SIGHUP: read again%s%s", f", tokens: {changes}" if tokens.tokens else "", ", certificates" if context else "")

    def _read_tokens(self) -> Tokens:
        settings = self._settings
        one, name = settings.token, "token_file"
        try:
            if settings.token_file is not None:
                one = read_token(settings.token_file)
            name = "tokens_file"
            return tokens_of(one, settings.tokens_file)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None

    def _read_context(self) -> ssl.SSLContext | None:
        settings = self._settings
        if settings.tls_cert_file is None:
            return None
        return server_context(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)

    def _hand_over(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        assert self._newest is not None  # noqa: S101
        if self._newest is not context:
            connection.context = self._newest


def readable_by_others(settings: ServeSettings) -> Iterator[str]:
    """What is to be said of files of secrets that every user of this machine may read."""
    for path in (settings.token_file, settings.tokens_file, settings.tls_key_file or settings.tls_cert_file):
        if path is not None and (mode := stat.S_IMODE(path.stat().st_mode)) & stat.S_IROTH:
            yield f"{path}: every user of this machine can read what it holds (mode {mode:o}): chmod o-r it"


def _changes(before: Tokens, now: Tokens) -> str:
    old, new = ({token.name: token for token in tokens.tokens} for tokens in (before, now))
    said = [f"{what} {', '.join(names)}" for what, names in (
        ("added", sorted(new.keys() - old.keys())),
        ("removed", sorted(old.keys() - new.keys())),
        ("changed", sorted(name for name in old.keys() & new.keys() if old[name] != new[name])),
    ) if names]  # fmt: skip
    return "; ".join(said) or "as they were"
