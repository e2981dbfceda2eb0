"""Moves packed weights and KV caches to huge pages. With small pages, a decode step on a CPU takes 10 % longer or more.

A step reads all weights. ONNX Runtime packs them into its own memory, which Linux backs with pages of 4 KiB by default.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # asm-generic/mman-common.h; the second since Linux 6.1
HUGE = 2 << 20  # bytes of a huge page of x86-64, and of arm64 with pages of 4 KiB


def use_huge_pages() -> None:
    """Ask Linux to move this process's large anonymous memory to huge pages; do nothing on other systems.

    It is advice: a kernel without free huge pages, or with huge pages disabled, leaves memory as it is.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for begin, size in _anonymous_memory():
        libc.madvise(begin, size, MADV_HUGEPAGE)
        libc.madvise(begin, size, MADV_COLLAPSE)


def _anonymous_memory() -> list[tuple[int, int]]:
    """Address and bytes of each writable mapping of no file that is large enough for a huge page."""
    mappings = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, access, _, _, inode, *name = line.split(maxsplit=5)
        begin, end = (int(address, 16) for address in span.split("-"))
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]) and end - begin >= HUGE:
            mappings.append((begin, end - begin))
    return mappings
