"""Writes a checkpoint folder one block at a time, and can go on where a run that was killed had stopped.

The order and the alignment of tensors matter to us, so the stock writer of safetensors, which sorts, does not do:
neighbours in the file become one ONNX initializer, and the data starts on a page.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import torch

from console.errors import CannotResumeError
from quantize.checkpoint.reader import DTYPE_NAMES, DTYPES, INDEX, PAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

HEADER_ROOM = 32 * PAGE  # bytes kept free in front of the data of a file: about 900 tensors
SHARD_BYTES = 4 << 30


class CheckpointWriter:
    """Writes tensors to safetensors files in the order given, without holding more than a block in memory.

    The header comes first in the file but is known last, so space is left for it and filled with blanks. A file is full
    when it has `shard_bytes` of data or no space left in its header; tensors of one `write` stay in one file, so that
    what is meant to be adjacent is. Use it in a `with` statement; `finish` gives the files their names.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES, header_room: int = HEADER_ROOM) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._header_room = header_room
        self._headers: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._small: list[tuple[str, torch.Tensor]] = []
        self.total_bytes = 0

    def write(
        self, tensors: Iterable[tuple[str, torch.Tensor]], small: Iterable[tuple[str, torch.Tensor]] = ()
    ) -> None:
        """Append tensors that belong together, such as one block, in this order.

        small: tensors of odd sizes, which go to the end of the file, where they leave the others aligned.
        """
        together, ends = list(tensors), list(small)
        entries = {name: _entry(tensor) for name, tensor in together + ends}
        written = [name for name in entries if any(name in header for header in self._headers)]
        if written or len(entries) < len(together) + len(ends):
            raise ValueError(f"a tensor is written twice: {written}")
        if self._file is None or self._file.tell() >= self._shard_bytes or not self._has_room(entries):
            self._next_shard()
        if not self._has_room(entries):
            raise ValueError(f"the header of {len(entries)} tensors does not fit in {self._header_room} bytes")
        self._headers[-1].update(entries)
        for name, tensor in together:
            self._append(name, tensor)
        self._small += ends

    def state(self) -> dict[str, Any]:
        """Make sure that all that was written is on the disk, and give what `resume` needs, as JSON can hold it."""
        length = None
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            length = self._file.tell()
        small = [(name, DTYPE_NAMES[one.dtype], list(one.shape), _bytes(one).hex()) for name, one in self._small]
        return {"headers": self._headers, "length": length, "small": small, "total_bytes": self.total_bytes}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, in a new writer for the same folder; what was written after it is cut off.

        Raises CannotResumeError where a file lacks what the state says.
        """
        self._headers, self.total_bytes = state["headers"], state["total_bytes"]
        self._small = [
            (name, torch.frombuffer(bytearray.fromhex(data), dtype=DTYPES[dtype]).reshape(shape))
            for name, dtype, shape, data in state["small"]
        ]
        for i, header in enumerate(self._headers):
            shard = self._shard(i)
            if not shard.exists() and self._named(i).exists():  # a kill may have come after `finish`
                self._named(i).rename(shard)
            ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
            needed = state["length"] if header is self._headers[-1] else self._header_room + max(ends)
            if not shard.exists() or shard.stat().st_size < needed:  # truncating would fill it up with zeros
                raise CannotResumeError(f"{shard} is missing or cut; remove {self._folder} and begin again")
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
        start, data = self._file.tell() - self._header_room, _bytes(tensor)
        self._file.write(data)
        self._headers[-1][name]["data_offsets"] = [start, start + len(data)]
        self.total_bytes += len(data)

    def _has_room(self, entries: Mapping[str, Any]) -> bool:
        return len(_header({**self._headers[-1], **entries})) <= self._header_room - 8

    def _shard(self, i: int) -> Path:
        return self._folder / f"model-{i + 1:05d}.writing"

    def _named(self, i: int) -> Path:
        return self._folder / f"model-{i + 1:05d}-of-{len(self._headers):05d}.safetensors"

    def _next_shard(self) -> None:
        self._close_shard()
        self._headers.append({"__metadata__": {"format": "pt"}})
        self._file = self._shard(len(self._headers) - 1).open("wb")
        self._file.write(b" " * self._header_room)

    def _close_shard(self) -> None:
        if self._file is None:
            return
        for name, tensor in self._small:
            self._append(name, tensor)
        self._small = []
        length = self._header_room - 8
        with self._file as file:
            file.seek(0)
            file.write(length.to_bytes(8, "little") + _header(self._headers[-1]).ljust(length))
            file.flush()
            os.fsync(file.fileno())
        self._file = None


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: memoryview = flat.view(torch.uint8).numpy().data
    return data


def _entry(tensor: torch.Tensor) -> dict[str, Any]:
    # Offsets of this width stand for any that may come, so that a header never outgrows what was checked.
    return {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [10**15, 10**15]}


def _header(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
