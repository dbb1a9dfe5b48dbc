"""Keeps the memory of a server of many short-lived threads flat."""

import ctypes
import sys
from typing import Final

M_ARENA_MAX: Final = -8
"""What malloc.h calls the setting for how many heaps there may be."""


def share_heaps() -> None:
    """Has all threads allocate from two heaps; a C library other than glibc is left alone.

    glibc gives threads heaps of their own, up to eight a core, and what torch frees stays with the heap it came from. A server's threads
    come and go: it grew by 300 MB in three minutes while what it held stayed the same.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):
        library.mallopt(M_ARENA_MAX, 2)  # type: ignore[union-attr]
