"""A file system in memory that counts its requests, as an object store would bill them."""

from collections import Counter
from typing import ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class CountingFileSystem(MemoryFileSystem):
    """Counts what each operation of fsspec comes down to."""

    protocol = "counting"
    requests: ClassVar[Counter[str]] = Counter()
    bytes_read = 0

    def info(self, path, **options):
        self.requests["info"] += 1
        return super().info(path, **options)

    def ls(self, path, detail=True, **options):
        self.requests["ls"] += 1
        return super().ls(path, detail, **options)

    def find(self, path, *args, **options):
        self.requests["find"] += 1
        return super().find(path, *args, **options)

    def cat_file(self, path, start=None, end=None, **options):
        self.requests["read"] += 1
        content = super().cat_file(path, start, end, **options)
        CountingFileSystem.bytes_read += len(content)
        return content

    def _open(self, path, mode="rb", **options):
        self.requests[f"open {mode}"] += 1
        file = super()._open(path, mode, **options)
        return _Counted(file.getvalue()) if mode == "rb" else file


class _Counted(fsspec.implementations.memory.MemoryFile):
    def __init__(self, content):
        super().__init__(None, None, content)

    def read(self, size=-1, /):
        content = super().read(size)
        CountingFileSystem.bytes_read += len(content)
        return content


fsspec.register_implementation("counting", CountingFileSystem, clobber=True)


def counted(call) -> tuple[dict[str, int], int]:
    """The requests and bytes that a call costs."""
    CountingFileSystem.requests.clear()
    CountingFileSystem.bytes_read = 0
    call()
    return dict(CountingFileSystem.requests), CountingFileSystem.bytes_read
