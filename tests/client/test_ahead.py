"""Windows gathered ahead of the loop: in order, not too many, by a thread that ends with them."""

import os
import threading
from collections.abc import Callable

import pytest
from conftest import poll

from cpstream_client.epochs.ahead import gathered_ahead


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "cpstream-gather"]


def on_loops_thread(then: Callable[[], object], otherwise: Callable[[], object]) -> None:
    (otherwise if threading.current_thread().name == "cpstream-gather" else then)()


@pytest.mark.parametrize("slow", ["nobody", "loop", "other"])
@pytest.mark.parametrize(("windows", "most"), [(0, 2), (1, 2), (2, 4), (7, 3), (200, 4)])
def test_windows_come_in_order_whoever_gathers_them(windows: int, most: int, slow: str) -> None:
    at, farthest = 0, 0

    def gather(window: int) -> int:
        nonlocal farthest
        farthest = max(farthest, window - at)
        if slow != "nobody":
            pause = threading.Event()
            on_loops_thread(*((lambda: pause.wait(0.001), int) if slow == "loop" else (int, lambda: pause.wait(0.001))))
        return window * 10

    found = []
    for window in gathered_ahead(range(windows), gather, most):
        found.append(window)
        at = len(found)
    assert found == [10 * window for window in range(windows)]
    assert farthest < most + 1
    assert not helpers()


def test_while_the_loop_computes_the_next_ones_are_gathered() -> None:
    by: dict[int, str] = {}

    def gather(window: int) -> int:
        by[window] = threading.current_thread().name
        return window

    ahead = gathered_ahead(range(20), gather, 4)
    for window in ahead:
        poll(lambda: len(by) >= min(20, window + 3))  # noqa: B023
        assert len(by) <= window + 4
    assert [by[window] for window in range(5, 20)] == ["cpstream-gather"] * 15


def test_a_loop_gathers_what_another_thread_does_not() -> None:
    done = threading.Event()

    def gather(window: int) -> int:
        on_loops_thread(lambda: seen.append(window), lambda: done.wait(30))
        if len(seen) == 3:  # all that are allowed but the one that the other thread has
            done.set()
        return window

    seen: list[int] = []
    ahead = gathered_ahead(range(4), gather, 4)
    assert list(ahead) == [0, 1, 2, 3]
    assert len(seen) >= 3


def test_an_error_is_raised_in_the_loop_and_the_thread_ends() -> None:
    def gather(window: int) -> int:
        if window >= 3:
            raise ValueError("window 3")
        return window

    found: list[int] = []
    with pytest.raises(ValueError, match="window 3"):
        found.extend(gathered_ahead(range(20), gather, 2))
    assert found in ([0, 1], [0, 1, 2])
    assert not helpers()


def test_a_loop_that_is_left_leaves_no_thread() -> None:
    ahead = gathered_ahead(range(100), lambda window: window, 4)
    assert [next(ahead), next(ahead)] == [0, 1]
    assert len(helpers()) == 1
    ahead.close()
    assert not helpers()


def test_a_forked_process_gathers_by_itself() -> None:
    ahead = gathered_ahead(range(50), lambda window: window, 4)
    assert next(ahead) == 0
    pid = os.fork()
    if not pid:
        os._exit(0 if list(ahead) == list(range(1, 50)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(ahead) == list(range(1, 50))
