"""Huge pages for packed weights: a decode step on a CPU reads all of them, and small pages cost it a tenth or more.

ONNX Runtime packs weights into memory of its own, which Linux backs with pages of 4 KiB unless told otherwise.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # asm-generic/mman-common.h; the second since Linux 6.1
HUGE = 2 << 20  # bytes of a huge page of x86-64, and of arm64 with pages of 4 KiB


def use_huge_pages() -> None:
    """Ask Linux to move this process's large anonymous memory to huge pages; elsewhere there is nothing to ask.

    It is advice: a kernel that has no free huge pages, or is set to give none, leaves memory as it is.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for begin, size in _anonymous_memory():
        libc.madvise(begin, size, MADV_HUGEPAGE)
        libc.madvise(begin, size, MADV_COLLAPSE)


def _anonymous_memory() -> list[tuple[int, int]]:
    """Address and bytes of each writable mapping that holds a huge page and belongs to no file."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, access, _, _, inode, *name = line.split(maxsplit=5)
        begin, end = (int(address, 16) for address in span.split("-"))
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]) and end - begin >= HUGE:
            found.append((begin, end - begin))
    return found
