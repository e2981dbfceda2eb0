"""Hidden states of all documents of a split, in a memory-mapped file: what passes from one block to the next.

They can be larger than memory. A block reads one file and writes the next, so that a run that
is killed inside a block still finds what the block began with.
"""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from console.errors import CannotResumeError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


ACTIVATIONS = "activations"  # how the names of their files begin
ZEROS = bytes(2**24)  # written at once


@dataclass(frozen=True)
class Layout:
    """What a file holds: hidden states of this width for so many tokens (or patches) of each document."""

    file: str
    lengths: list[int]
    width: int


class Activations:
    """A list of tensors [T, width], float32 to whoever reads or writes them and `dtype` in the file."""

    def __init__(self, folder: Path, layout: Layout, dtype: torch.dtype, new: bool = False) -> None:
        """Map a file, or make a new one of its full size.

        Raises CannotResumeError where the file is not what was written, OSError where the disk is full.
        """
        self.layout, self._path = layout, folder / layout.file
        size = sum(layout.lengths) * layout.width
        length = max(size * dtype.itemsize, 1)
        if new:
            _allocate(self._path, length)
        elif not self._path.is_file() or self._path.stat().st_size != length:  # a map would be filled up with zeros
            raise CannotResumeError(f"{self._path} is missing or cut; remove {folder} and begin again")
        self._all = torch.from_file(str(self._path), shared=True, size=size, dtype=dtype).view(-1, layout.width)
        self._edges = [0, *itertools.accumulate(layout.lengths)]

    def __len__(self) -> int:
        return len(self.layout.lengths)

    def sync(self) -> None:
        """Make sure that the states are on the disk before a journal says so."""
        with self._path.open("r+b") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())

    def __getitem__(self, document: int) -> torch.Tensor:
        return self._all[self._edges[document] : self._edges[document + 1]].float()

    def __setitem__(self, document: int, states: torch.Tensor) -> None:
        """Store the states of a document. Raises InputError where the dtype cannot hold them."""
        refuse_overflow(f"an activation of document {document}", float(states.abs().max()), self._all.dtype)
        self._all[self._edges[document] : self._edges[document + 1]] = states.cpu().to(self._all.dtype)


def keep_only(folder: Path, layouts: Iterable[Layout]) -> None:
    """Remove hidden states that nothing will read: all but these, those of a step that was not finished too."""
    used = {layout.file for layout in layouts}
    for path in folder.glob(f"{ACTIVATIONS}-*"):
        if path.name not in used:
            path.unlink()


def refuse_overflow(what: str, largest: float, dtype: torch.dtype) -> None:
    """Raise InputError where `dtype` cannot hold the largest magnitude of something."""
    if not largest <= torch.finfo(dtype).max:
        name = str(dtype).removeprefix("torch.")
        wider = dtype == torch.float16 and math.isfinite(largest)
        hint = "use --dtype bfloat16" if wider else "the checkpoint is damaged, download it again"
        raise InputError(f"{what} reaches {largest:.3g}, {name} cannot hold it; {hint}")


def _allocate(path: Path, size: int) -> None:
    """Make a file of so many bytes, all of them taken on the disk. Raises OSError where it is too full.

    A page that the disk cannot hold would end a process that writes to the map.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for first in range(0, size, len(ZEROS)):  # macOS and Windows: truncating would take no space
            file.write(ZEROS[: size - first])
