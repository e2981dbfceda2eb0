"""Shapes and bytes of what a model holds in memory next to its weights. The KV cache and `quantize plan` share them.

This module imports nothing outside the standard library: quantize may import it, and nothing else of runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

KvLayout = Literal["window", "full"]
Shape = tuple[int, ...]

CALL_PATCHES = 16384
"""Patches of one vision call: those of the largest image of EXAONE 4.5, so any video fits where that image does."""

BLOCK = 32
"""Weights that share a scale in ONNX Runtime's CUTLASS kernels (`export --block-size 32`)."""


@dataclass(frozen=True)
class Chunking:
    """How a prompt is cut into calls of the decoder (`runtime.decoding.prompt_chunks`)."""

    longest: int
    """Tokens of the longest call. It bounds the activations, which are widest inside the MLP."""
    multiple: int
    """Shorter calls are padded to a multiple of this many tokens."""

    def between_steps(self) -> Chunking:
        """Shorter calls, for a prompt that is read while other answers wait for their next token."""
        return replace(self, longest=self.longest // 4)


# A GPU unpacks every weight once a call, so one call of 4096 tokens costs it a quarter of what four of 1024 do.
CHUNKINGS = {"cpu": Chunking(1024, 1), "cuda": Chunking(4096, 256)}


@dataclass(frozen=True)
class KvLayers:
    """Key and value buffers of the decoder's layers, or of the MTP layer's."""

    limits: Sequence[int | None]
    """Rows that the buffers of each layer are limited to; None for the capacity of the cache."""
    heads: int
    """KV heads."""
    head_dim: int
    """Channels of a head."""

    def shapes(self, capacity: int, batch: int = 1) -> list[tuple[int, int, int, int]]:
        """Shape [batch, heads, rows, head_dim] of each layer's key buffer; its value buffer has the same.

        capacity: tokens the sequences may grow to. A sliding layer needs no more rows than its window, and CUDA's
        kernel requires exactly that many.
        """
        rows = [capacity if limit is None else limit for limit in self.limits]
        return [(batch, self.heads, count, self.head_dim) for count in rows]

    def bytes(self, capacity: int, itemsize: int, batch: int = 1) -> int:
        """Bytes of all key and value buffers."""
        return sum(2 * itemsize * math.prod(shape) for shape in self.shapes(capacity, batch))


def buffer_limits(windows: Sequence[int | None], layout: KvLayout) -> list[int | None]:
    """Rows that the KV buffers of each layer are limited to; None for the capacity of the cache.

    windows: keys that a token sees in each layer, None for all. layout "full" limits no layer.
    """
    return list(windows) if layout == "window" else [None] * len(windows)


def rope_shape(length: int, head_dim: int) -> Shape:
    """Shape of the table of cosines, and of that of sines, for positions 0 … length - 1."""
    return length, head_dim // 2


def logits_shape(selected: int, vocab_size: int, batch: int = 1) -> Shape:
    """Shape of the logits at `selected` positions of each sequence."""
    return batch, selected, vocab_size


def fits_blocks(rows: int, bits: int, group_size: int) -> bool:
    """Whether CUTLASS kernels take a packed weight of so many rows, bits and weights per scale, in blocks of 32."""
    return group_size % BLOCK == 0 and rows % (64 if bits == 4 else 32) == 0
