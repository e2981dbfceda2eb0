"""Weights as byte ranges of the checkpoint's own files, in whatever format they are stored.

A `StoredModule` has buffers that know where their bytes lie. For tracing they have a shape but no memory; loaded, the
same module runs in eager mode. Tensors that are contiguous in one file can become one buffer: that fuses q, k, v and
gate, up without a copy.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from console.errors import InputError
from export.formats import check_config
from quantize.checkpoint.reader import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from quantize.checkpoint.reader import Checkpoint


@dataclass(frozen=True)
class ByteRange:
    """Bytes of one weights file that one initializer of a graph reads."""

    file: str
    """Name of the file in the model folder."""
    offset: int
    """First byte, from the start of the file."""
    nbytes: int
    """Number of bytes."""


@dataclass(frozen=True)
class Source:
    """Where modules take their weights from, and how they use them.

    Raises InputError for a checkpoint whose config.json says what graphs cannot do.
    """

    checkpoint: Checkpoint
    """The model folder."""
    load: bool
    """Read the weights; False gives buffers without memory."""
    exact: bool = True
    """False: the CPU kernel of packed weights may round activations to int8."""
    block_size: int | None = None
    """Weights that share a scale in the graphs, where packed weights are stored in larger groups; None: as stored."""

    def __post_init__(self) -> None:
        check_config(self.checkpoint)


def contiguous(source: Source, names: Sequence[str]) -> bool:
    """Whether these tensors have one dtype and follow each other without a gap in one file."""
    tensors = [source.checkpoint.tensor(name) for name in names]
    return all(
        (b.file, b.offset, b.dtype) == (a.file, a.offset + a.nbytes, a.dtype) for a, b in itertools.pairwise(tensors)
    )


class StoredModule(nn.Module):
    """A module whose buffers are byte ranges of a checkpoint: `byte_ranges` by buffer name."""

    def __init__(self) -> None:
        super().__init__()
        self.byte_ranges: dict[str, ByteRange] = {}

    def register_stored(
        self, source: Source, buffer: str, names: list[str], shape: tuple[int, ...], dtype: torch.dtype | None = None
    ) -> None:
        """Register a buffer of this shape over the bytes of contiguous tensors. dtype: None for the stored one.

        Raises InputError if they have another number of bytes.
        """
        tensors = [source.checkpoint.tensor(name) for name in names]
        dtype = dtype or DTYPES[tensors[0].dtype]
        stored = ByteRange(tensors[0].file.name, tensors[0].offset, sum(tensor.nbytes for tensor in tensors))
        if math.prod(shape) * dtype.itemsize != stored.nbytes:
            raise InputError(f"{names[0]}: {stored.nbytes} bytes stored, {list(shape)} of {dtype} expected")
        if source.load:
            parts = [source.checkpoint.load(name).reshape(-1).view(torch.uint8) for name in names]
            value = torch.cat(parts).view(dtype).reshape(shape)
        else:
            value = _without_memory(shape, dtype)
        self.register_buffer(buffer, value)
        self.byte_ranges[buffer] = stored

    def load_weights(self, folder: Path) -> None:
        """Read all buffers of a module that was made without memory."""
        for name, stored in self.byte_ranges.items():
            empty = self.get_buffer(name)
            raw = torch.empty(stored.nbytes, dtype=torch.uint8)
            with (folder / stored.file).open("rb") as file:
                file.seek(stored.offset)
                file.readinto(raw.numpy().data)
            setattr(self, name, raw.view(empty.dtype).reshape(empty.shape))

    def unload_weights(self) -> None:
        """Free the memory of all buffers."""
        for name in self.byte_ranges:
            value = self.get_buffer(name)
            setattr(self, name, _without_memory(value.shape, value.dtype))


def _without_memory(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of one element that is seen as many: the tracer's own operators do not run on the meta device."""
    return torch.zeros((), dtype=dtype).expand(shape)


def load_on_use(module: nn.Module, folder: Path) -> None:
    """Have each part of a module read its weights just before it runs and free them after it."""
    for child in module.modules():
        if isinstance(child, StoredModule):
            child.register_forward_pre_hook(lambda stored, _: stored.load_weights(folder))
            child.register_forward_hook(lambda stored, *_: stored.unload_weights())


def byte_ranges(module: nn.Module) -> dict[str, ByteRange]:
    """Byte ranges of all stored buffers below a module, by their full name."""
    ranges: dict[str, ByteRange] = {}
    for prefix, child in module.named_modules():
        if isinstance(child, StoredModule):
            ranges |= {f"{prefix}.{name}" if prefix else name: stored for name, stored in child.byte_ranges.items()}
    return ranges
