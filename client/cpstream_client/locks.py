"""Locks that a forked process finds free.

A fork copies a lock as it is, but not the thread that holds it: in the child nobody would ever release it. DataLoader forks its
workers by default, while threads of other iterations are at work. So what outlives an iteration, and is used on both sides of a
fork, has its locks from here.
"""

import os
import threading
from weakref import WeakSet

_made: "WeakSet[threading.Lock]" = WeakSet()


def new_lock() -> threading.Lock:
    """A lock as threading.Lock(), which in a forked process is free."""
    made = threading.Lock()
    _made.add(made)
    return made


def _free_all() -> None:
    for each in list(_made):
        each._at_fork_reinit()  # type: ignore[attr-defined] # as logging and threading do with theirs


if hasattr(os, "register_at_fork"):  # there is none on Windows, which does not fork
    os.register_at_fork(after_in_child=_free_all)
