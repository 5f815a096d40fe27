"""How the C library gives memory back: on a CPU half of a convolution's time can go there."""

import contextlib
import ctypes

_TRIM_THRESHOLD = -1  # glibc's malloc.h
_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Lets glibc keep up to 2 GiB of freed memory for the next allocation; does nothing with another C library.

    By default every large tensor is mapped anew and given back at once, and the kernel clears its pages each time.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
