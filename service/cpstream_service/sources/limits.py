"""What reading a file may cost, by its size: a crafted one asks for any memory."""

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
