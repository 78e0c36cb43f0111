"""Memory of frames is kept: the C library would give it back to the kernel, and every frame would pay for its pages."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENAS = -1, -3, -8  # malloc.h
_BLOCK = 64 << 20
"""The largest frame; up to this freed blocks are kept for the next one."""


def keep_freed_blocks() -> None:
    """Has glibc keep what is freed; other C libraries have no such switch and go on as they do.

    A frame of 2 MiB touches its 512 pages anew otherwise: a quarter of the processor time of its transport.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _BLOCK)
        mallopt(_TRIM_THRESHOLD, 2 * _BLOCK)
        mallopt(_ARENAS, 2)  # each thread's own would keep blocks that no other can have
