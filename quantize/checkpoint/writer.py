"""Write a checkpoint folder one block at a time, resumable after a kill.

The writer of safetensors sorts tensors. Here their order and alignment matter: tensors side by side in the file become
one ONNX initializer, and the data starts on a page.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import torch

from console.errors import CannotResumeError
from quantize.checkpoint.reader import DTYPE_NAMES, DTYPES, PAGE
from quantize.checkpoint.weight_files import INDEX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

HEADER_BYTES = 32 * PAGE  # reserved in front of the data of a file: enough for about 900 tensors
SHARD_BYTES = 4 << 30


class CheckpointWriter:
    """Writes tensors to safetensors files in the order given, with one block in memory.

    The header comes first in the file but is known last, so its bytes are reserved and filled with blanks. A file is
    full when it has `shard_bytes` of data or a full header. Tensors of one `write` stay in one file, side by side. Use
    it in a `with` statement; `finish` gives the files their final names.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES, header_bytes: int = HEADER_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._header_bytes = header_bytes
        self._headers: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._metadata: list[tuple[str, torch.Tensor]] = []
        self.total_bytes = 0

    def write(
        self, tensors: Iterable[tuple[str, torch.Tensor]], metadata: Iterable[tuple[str, torch.Tensor]] = ()
    ) -> None:
        """Append tensors that belong together, such as one block, in this order.

        metadata: small tensors of odd sizes. They go to the end of the file, where they leave the others aligned.
        """
        block, at_end = list(tensors), list(metadata)
        entries = {name: _entry(tensor) for name, tensor in block + at_end}
        written = [name for name in entries if any(name in header for header in self._headers)]
        if written or len(entries) < len(block) + len(at_end):
            raise ValueError(f"a tensor is written twice: {written}")
        if self._file is None or self._file.tell() >= self._shard_bytes or not self._fits_header(entries):
            self._next_shard()
        if not self._fits_header(entries):
            raise ValueError(f"the header of {len(entries)} tensors does not fit in {self._header_bytes} bytes")
        self._headers[-1].update(entries)
        for name, tensor in block:
            self._append(name, tensor)
        self._metadata += at_end

    def state(self) -> dict[str, Any]:
        """Flush to the disk. Returns what `resume` needs, as JSON can hold it."""
        length = None
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            length = self._file.tell()
        metadata = [
            (name, DTYPE_NAMES[tensor.dtype], list(tensor.shape), _bytes(tensor).hex())
            for name, tensor in self._metadata
        ]
        return {"headers": self._headers, "length": length, "small": metadata, "total_bytes": self.total_bytes}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state`, in a new writer for the same folder; bytes written after it are removed.

        Raises CannotResumeError where a file is missing or shorter than the state says.
        """
        self._headers, self.total_bytes = state["headers"], state["total_bytes"]
        self._metadata = [
            (name, torch.frombuffer(bytearray.fromhex(data), dtype=DTYPES[dtype]).reshape(shape))
            for name, dtype, shape, data in state["small"]
        ]
        for i, header in enumerate(self._headers):
            shard = self._shard(i)
            if not shard.exists() and self._named(i).exists():  # a kill may have come after `finish`
                self._named(i).rename(shard)
            ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
            needed = state["length"] if header is self._headers[-1] else self._header_bytes + max(ends)
            if not shard.exists() or shard.stat().st_size < needed:  # truncate() would fill it up with zeros
                raise CannotResumeError(f"{shard} is missing or truncated; remove {self._folder} and begin again")
        if state["length"] is not None:
            self._file = self._shard(len(self._headers) - 1).open("r+b")
            self._file.truncate(state["length"])
            self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def finish(self) -> None:
        """Write the last header and the index, and give the files their final names."""
        self._close_shard()
        weight_map: dict[str, str] = {}
        for i, header in enumerate(self._headers):
            self._shard(i).rename(self._named(i))
            weight_map.update(dict.fromkeys((key for key in header if key != "__metadata__"), self._named(i).name))
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _append(self, name: str, tensor: torch.Tensor) -> None:
        assert self._file is not None
        start, data = self._file.tell() - self._header_bytes, _bytes(tensor)
        self._file.write(data)
        self._headers[-1][name]["data_offsets"] = [start, start + len(data)]
        self.total_bytes += len(data)

    def _fits_header(self, entries: Mapping[str, Any]) -> bool:
        return len(_header({**self._headers[-1], **entries})) <= self._header_bytes - 8

    def _shard(self, i: int) -> Path:
        return self._folder / f"model-{i + 1:05d}.writing"

    def _named(self, i: int) -> Path:
        return self._folder / f"model-{i + 1:05d}-of-{len(self._headers):05d}.safetensors"

    def _next_shard(self) -> None:
        self._close_shard()
        self._headers.append({"__metadata__": {"format": "pt"}})
        self._file = self._shard(len(self._headers) - 1).open("wb")
        self._file.write(b" " * self._header_bytes)

    def _close_shard(self) -> None:
        if self._file is None:
            return
        for name, tensor in self._metadata:
            self._append(name, tensor)
        self._metadata = []
        length = self._header_bytes - 8
        with self._file as file:
            file.seek(0)
            file.write(length.to_bytes(8, "little") + _header(self._headers[-1]).ljust(length))
            file.flush()
            os.fsync(file.fileno())
        self._file = None


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: memoryview = flat.view(torch.uint8).numpy().data
    return data


def _entry(tensor: torch.Tensor) -> dict[str, Any]:
    # The widest offsets: real ones are filled in later, and the header must not outgrow what was checked.
    return {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [10**15, 10**15]}


def _header(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
