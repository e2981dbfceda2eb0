"""Hidden states of all documents of a split, in a memory-mapped file: what passes from one block to the next.

They can be larger than memory. A block reads one file and writes the next, so that a run that
is killed inside a block still finds what the block began with.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from calib_data.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


ACTIVATIONS = "activations"  # how the names of their files begin


@dataclass(frozen=True)
class Layout:
    """What a file holds: hidden states of this width for so many tokens (or patches) of each document."""

    file: str
    lengths: list[int]
    width: int


class Activations:
    """A list of tensors [T, width], float32 to whoever reads or writes them and `dtype` in the file."""

    def __init__(self, folder: Path, layout: Layout, dtype: torch.dtype) -> None:
        """Map an existing file, or make one of its full size. Raises OSError where the disk has no room for it."""
        self.layout, self._path = layout, folder / layout.file
        size = sum(layout.lengths) * layout.width
        if not self._path.exists():
            with self._path.open("wb") as file:
                # All of it now: a page that the disk cannot hold would end a process that writes to the map.
                os.posix_fallocate(file.fileno(), 0, max(size * dtype.itemsize, 1))
        self._all = torch.from_file(str(self._path), shared=True, size=size, dtype=dtype).view(-1, layout.width)
        self._edges = [0, *itertools.accumulate(layout.lengths)]

    def __len__(self) -> int:
        return len(self.layout.lengths)

    def sync(self) -> None:
        """Make sure that the states are on the disk before a journal says so."""
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def __getitem__(self, document: int) -> torch.Tensor:
        return self._all[self._edges[document] : self._edges[document + 1]].float()

    def __setitem__(self, document: int, states: torch.Tensor) -> None:
        """Store the states of a document. Raises InputError where the dtype cannot hold them."""
        largest = float(states.abs().max())
        if not largest <= torch.finfo(self._all.dtype).max:
            name = str(self._all.dtype).removeprefix("torch.")
            hint = "; use --dtype bfloat16" if self._all.dtype == torch.float16 else ", the checkpoint is damaged"
            raise InputError(f"an activation of document {document} reaches {largest:.3g}, {name} cannot hold it{hint}")
        self._all[self._edges[document] : self._edges[document + 1]] = states.cpu().to(self._all.dtype)
