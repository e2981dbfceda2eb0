"""Packed weights lie on huge pages, by the kernel's own count."""

import mmap
import re
import sys
from pathlib import Path

import pytest

from runtime.ort.huge_pages import use_huge_pages

SIZE = 64 << 20
MADV_COLLAPSE = 25


def huge_bytes() -> int:
    """Of this process's anonymous memory."""
    counted = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert counted
    return int(counted[1]) * 1024


def small_pages() -> mmap.mmap:
    """Memory that is in use, on small pages."""
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.write(bytes(range(256)) * (SIZE // 256))
    return memory


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are for Linux")
def test_large_memory_moves_to_huge_pages_and_keeps_its_content():
    with small_pages() as probe:
        try:
            probe.madvise(mmap.MADV_HUGEPAGE)
            probe.madvise(MADV_COLLAPSE)
        except OSError:
            pytest.skip("this kernel gives no huge pages")
    with small_pages() as memory:
        before = huge_bytes()
        use_huge_pages()
        assert huge_bytes() - before >= SIZE // 2
        assert memory[:] == bytes(range(256)) * (SIZE // 256)
