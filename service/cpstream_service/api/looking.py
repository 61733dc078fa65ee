"""What a worker looks at again and again, beside its requests."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

logger = logging.getLogger("cpstream.service")

_PAUSE_S = 1.0


@asynccontextmanager
async def looking(look: Callable[[], Awaitable[None]], every_s: Callable[[], float], failed: str) -> AsyncIterator[None]:
    """Within, `look` is called every_s() after it has returned last. failed: for the log, where it raises; then it goes on."""

    async def look_on() -> None:
        while True:
            await asyncio.sleep(every_s())
            try:
                await look()
            except Exception as error:  # what is served goes on
                if isinstance(error, OSError):  # such as a full disk, or no more files
                    logger.error("%s: %s", failed, error)
                else:
                    logger.exception("%s", failed)
                await asyncio.sleep(_PAUSE_S)

    task = asyncio.ensure_future(look_on())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
