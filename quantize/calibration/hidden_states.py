"""Hidden states of all documents of a split, in memory-mapped files: they can be larger than memory.

A block reads one file and writes the next, so a run that is killed inside a block still finds what the block read.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from console.errors import CannotResumeError
from quantize.calibration.overflow import refuse_overflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

ACTIVATIONS = "activations"  # how the names of these files begin
ZEROS = bytes(2**24)  # written at once


@dataclass(frozen=True)
class Layout:
    """The layout of a file of hidden states."""

    file: str
    """Name of the file."""
    lengths: list[int]
    """Tokens (or patches) of each document."""
    width: int
    """Width of a hidden state."""


class Activations:
    """A list of tensors [T, width], one per document: float32 in memory, `dtype` in the file."""

    def __init__(self, folder: Path, layout: Layout, dtype: torch.dtype, new: bool = False) -> None:
        """Map a file, or make a new one of its full size.

        Raises CannotResumeError where the file is missing or truncated, OSError where the disk is full.
        """
        self.layout, self._path = layout, folder / layout.file
        size = sum(layout.lengths) * layout.width
        length = max(size * dtype.itemsize, 1)
        if new:
            _allocate(self._path, length)
        elif not self._path.is_file() or self._path.stat().st_size != length:  # a map would be filled up with zeros
            raise CannotResumeError(f"{self._path} is missing or truncated; remove {folder} and begin again")
        self._all = torch.from_file(str(self._path), shared=True, size=size, dtype=dtype).view(-1, layout.width)
        self._edges = [0, *itertools.accumulate(layout.lengths)]

    def __len__(self) -> int:
        return len(self.layout.lengths)

    def sync(self) -> None:
        """Flush to the disk, before a journal relies on it."""
        with self._path.open("r+b") as file:  # Windows syncs only files open for writing
            os.fsync(file.fileno())

    def __getitem__(self, document: int) -> torch.Tensor:
        return self._all[self._edges[document] : self._edges[document + 1]].float()

    def __setitem__(self, document: int, states: torch.Tensor) -> None:
        """Store the states of a document. Raises InputError where the dtype cannot hold them."""
        refuse_overflow(f"an activation of document {document}", float(states.abs().max()), self._all.dtype)
        self._all[self._edges[document] : self._edges[document + 1]] = states.cpu().to(self._all.dtype)


@dataclass
class HiddenStates:
    """Hidden states of documents between two blocks, and their image tokens, in files of a run's folder."""

    stream: str
    """What they are, for the names of files and in the journal: the split of the documents, or "unquantized"."""
    folder: Path
    """Folder of the run."""
    dtype: torch.dtype
    """Dtype in the files."""
    written: int = 0
    """Number of files written so far: the next file has it in its name."""
    current: Layout | None = None
    """The file that the next block reads."""
    images: Layout | None = None
    """The file of image tokens, once the vision tower is done."""

    def read(self) -> Activations:
        """Open the hidden states that the next block reads."""
        assert self.current is not None
        return Activations(self.folder, self.current, self.dtype)

    def read_images(self) -> Activations | None:
        """Open the image tokens; None for a model without vision."""
        return None if self.images is None else Activations(self.folder, self.images, self.dtype)

    def write(self, states: Iterable[torch.Tensor], lengths: list[int], width: int) -> None:
        """Write hidden states [T, width] of each document for the next block."""
        layout = Layout(f"{ACTIVATIONS}-{self.stream}-{self.written}", lengths, width)
        activations = Activations(self.folder, layout, self.dtype, new=True)
        for document, document_states in enumerate(states):
            activations[document] = document_states
        activations.sync()
        self.current, self.written = layout, self.written + 1

    def write_outputs(self, run: Callable[[int], torch.Tensor], lengths: list[int]) -> None:
        """Write the outputs [T, width] of a block for the next one.

        run: runs a document through the block. lengths: of its inputs; a merger makes one token of several patches.
        """
        first = run(0)
        shrunk = lengths[0] // len(first)
        outputs = itertools.chain([first], (run(i) for i in range(1, len(lengths))))
        self.write(outputs, [length // shrunk for length in lengths], first.shape[1])

    def write_images(self, images: Iterable[torch.Tensor], lengths: list[int], width: int) -> None:
        """Write image tokens [T, width] of each document; their file stays until the end."""
        self.write(images, lengths, width)
        self.images, self.current = self.current, None

    @property
    def layouts(self) -> list[Layout]:
        """The files that are still needed."""
        return [layout for layout in (self.current, self.images) if layout is not None]


def keep_only(folder: Path, layouts: Iterable[Layout]) -> None:
    """Remove all files of hidden states but these, such as those of an unfinished step."""
    used = {layout.file for layout in layouts}
    for path in folder.glob(f"{ACTIVATIONS}-*"):
        if path.name not in used:
            path.unlink()


def _allocate(path: Path, size: int) -> None:
    """Make a file of `size` bytes and allocate them on the disk. Raises OSError where the disk is full.

    Without, a process that writes to a page that the disk cannot hold would be killed.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for first in range(0, size, len(ZEROS)):  # macOS and Windows: truncating would allocate nothing
            file.write(ZEROS[: size - first])
