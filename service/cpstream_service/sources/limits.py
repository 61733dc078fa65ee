"""What reading a file may cost, by its size: a crafted one asks for any memory."""

import resource
from contextlib import suppress
from pathlib import Path

MEMORY_BYTES, MEMORY_FACTOR, LARGE_FACTOR = 256 << 20, 8, 16
"""What reading may take: so much, and so many times the file; or LARGE_FACTOR times the file, if that is more.

Measured on sound npy: 1.3 times the file for arrays, 5 for lists of floats, 9 for small ints, 12.4 for lists of numpy scalars.
"""
CPU_S, CPU_BYTES_PER_S = 30, 1 << 20
"""Processor time that reading may take: so much, and a second for so many bytes. Lists, the slowest, are read at 80 MB a second."""


def memory_limit(size: int) -> int:
    """Bytes of memory that reading a file of `size` bytes may take."""
    return max(MEMORY_BYTES + MEMORY_FACTOR * size, LARGE_FACTOR * size)


def cpu_limit(size: int) -> int:
    """Seconds of processor time that reading a file of `size` bytes may take."""
    return CPU_S + size // CPU_BYTES_PER_S


def limit_process(memory_bytes: int, cpu_s: int) -> None:
    """Beyond what this process has now. RLIMIT_AS, which counts all that is mapped, is for kernels without RLIMIT_DATA."""
    with suppress(OSError):  # no /proc, nor any way to know what it has
        fields = [int(text) * resource.getpagesize() for text in Path("/proc/self/statm").read_text().split()]
        size, data = fields[0], fields[5]
        _lower(resource.RLIMIT_DATA, data + memory_bytes)
        _lower(resource.RLIMIT_AS, size + memory_bytes + 64 * (1 << 20))
    _lower(resource.RLIMIT_CPU, int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + cpu_s)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(which: int, limit: int) -> None:
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
