"""A request for batches on its way to one endpoint."""

import time
from dataclasses import dataclass, field

from ..contract.wire import ARROW_STREAM, ErrorCode
from ..errors import CorruptedError, ServiceError
from ..transport.asked import Asked
from ..transport.endpoints import Endpoint
from ..transport.replies import Reply
from ..transport.service import Service
from ..transport.sockets import Line
from .course import Ask


@dataclass(slots=True, eq=False)
class Request:
    """asked: as soon as it is sent. line: by which another thread wakes whoever waits for its reply.

    is_alone: whether no other request of its stream has been under way at any time since it was sent.
    """

    endpoint: Endpoint
    ask: Ask
    line: Line = field(default_factory=Line)
    asked: Asked | None = None
    made_s: float = field(default_factory=time.monotonic)
    is_alone: bool = True

    def send(self, service: Service) -> None:
        """Never raises what the network is at fault for: that comes with the reply."""
        ask = self.ask
        self.asked = service.send(
            self.endpoint, ask.method, ask.path, ask.params, ARROW_STREAM, ask.body, ask.content_type, self.line
        )

    def hurry(self) -> None:
        if self.asked is not None:
            self.asked.hurry()

    def reply(self) -> Reply:
        """Raises CorruptedError where the service read other indices than were sent, which are all of the split."""
        assert self.asked is not None  # noqa: S101 - it has been sent
        try:
            return self.asked.reply()
        except ServiceError as error:
            if self.ask.body is None or error.code != ErrorCode.INDEX_OUT_OF_RANGE.code:
                raise
            raise CorruptedError(f"the indices arrived damaged: {error}") from error

    def abandon(self) -> None:
        """Nobody wants the reply any more."""
        self.line.abort()
        if self.asked is not None:
            self.asked.close()
