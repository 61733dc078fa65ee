"""A request whose reply is still to come."""

from concurrent.futures import Future, wait

from .answers import Call
from .failures import failure
from .replies import Reply
from .tracing import thread


class Asked:
    """Whoever has one gets its reply once, or closes it. For one thread.

    errors: what a Call raises where the network or the other side is at fault; the others are as of Reply. base: the service's url;
    accept: a media type.
    """

    def __init__(
        self, call: Call, errors: tuple[type[Exception], ...], base: str, url: str, target: str, request_id: str, accept: str
    ) -> None:
        self._call, self._errors = call, errors
        self._base, self._url, self._target, self._request_id, self._accept = base, url, target, request_id, accept
        self._coming: Future[Reply] | None = None

    def hurry(self) -> None:
        """See to it that the request goes out before its reply is wanted."""
        if self._call.exchange is None:  # by a thread, for httpx sends and waits in one step: a round trip, at least
            self._coming = Future()
            thread(self._run, self._coming, name="cpstream-ask").start()

    def reply(self) -> Reply:
        """With status 200 and the media type asked for.

        Raises ServiceError when the service answered with a problem, TransportError when no proper answer came.
        """
        return self._receive() if self._coming is None else self._coming.result()

    def close(self) -> None:
        """Nobody wants the reply any more."""
        if self._call.exchange is not None:
            self._call.exchange.discard()
        elif self._coming is not None:
            self._coming.add_done_callback(_close)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread that `hurry` may have started."""
        if self._coming is not None:
            wait([self._coming], timeout_s)

    def _receive(self) -> Reply:
        try:
            answer = self._call.receive()
        except self._errors as error:
            raise failure(error, self._url) from error
        reply = Reply(answer, self._base, self._url, self._target, self._request_id, self._errors)
        reply.check(self._accept)
        return reply

    def _run(self, coming: "Future[Reply]") -> None:
        try:
            coming.set_result(self._receive())
        except BaseException as error:
            coming.set_exception(error)


def _close(coming: "Future[Reply]") -> None:
    if coming.exception() is None:
        coming.result().close()
