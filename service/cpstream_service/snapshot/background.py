"""What takes seconds, and may: it runs at a low priority, so that streams have the processor first.

Not at the lowest: on a machine that others keep busy, that is a seventieth of a processor, and whoever waits gives up.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
NICENESS = 10


def at_low_priority(work: Callable[P, T]) -> Callable[P, T]:
    """The same, in a thread of its own, since no thread may raise its priority again. The caller waits, and has its errors."""

    @wraps(work)
    def waited_for(*args: P.args, **named: P.kwargs) -> T:
        with ThreadPoolExecutor(1, thread_name_prefix="background", initializer=_step_back) as executor:
            return executor.submit(work, *args, **named).result()

    return waited_for


def _step_back() -> None:
    if sys.platform == "linux":  # where threads have priorities of their own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
