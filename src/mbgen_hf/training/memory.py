"""Memory of training on the CPU."""

import ctypes
import platform


# glibc's names and numbers (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor instead of returning it to the system.

    A training step makes and drops the same large tensors again and again. By default glibc maps each of them anew,
    and the system clears every page of it first, which took a tenth of a step and more.

    Returns:
        Whether the C library is one that can be told so; other ones are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    return bool(set_option(M_MMAP_THRESHOLD, LARGEST_KEPT) and set_option(M_TRIM_THRESHOLD, 2**31 - 1))


__all__ = ["keep_freed_memory"]
