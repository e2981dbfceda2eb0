"""Sizes of what the runtime holds on a device: allocated by `runtime.ort`, predicted by `quantize plan`.

Both take them from here, so that a plan cannot differ from what is allocated. Nothing here needs ONNX Runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Shape = tuple[int, int, int, int]
KvLayout = Literal["window", "full"]
Windows = list[int | None]
"""Keys that a token sees in each layer; None in layers that see all of them."""


@dataclass(frozen=True)
class Chunking:
    """How a prompt is cut into calls of the decoder (`runtime.ort.prompt_chunks`)."""

    longest: int
    """Tokens of the longest call. Bounds the activations, which are widest inside the MLP."""
    multiple: int
    """Shorter calls are padded to a multiple of this many tokens."""


# A GPU unpacks every weight once a call: for the same prompt, calls of 4096 unpack a quarter as often as calls of 1024.
CHUNKINGS = {"cpu": Chunking(1024, 1), "cuda": Chunking(4096, 256)}


def buffer_limits(windows: Windows, layout: KvLayout) -> Windows:
    """Limit the rows of each layer's KV buffers; None for as many rows as the cache has capacity.

    "window": a sliding layer keeps its window only. "full": it keeps all tokens, as global layers do.
    """
    return windows if layout == "window" else [None] * len(windows)


def kv_shapes(limits: Sequence[int | None], kv_heads: int, head_dim: int, capacity: int, batch: int = 1) -> list[Shape]:
    """Shape [batch, kv_heads, rows, head_dim] of each layer's key buffer; its value buffer has the same.

    limits: of `buffer_limits`. capacity: tokens that a sequence may have. A limited buffer has exactly its limit of
    rows, however small the capacity: CUDA's attention kernel requires it.
    """
    return [(batch, kv_heads, capacity if limit is None else limit, head_dim) for limit in limits]


def kv_bytes(
    limits: Sequence[int | None], kv_heads: int, head_dim: int, capacity: int, itemsize: int, batch: int = 1
) -> int:
    """Bytes of all key and value buffers, of elements of `itemsize` bytes."""
    return sum(2 * itemsize * math.prod(shape) for shape in kv_shapes(limits, kv_heads, head_dim, capacity, batch))


def rope_shape(head_dim: int, capacity: int) -> tuple[int, int]:
    """Shape of the cosine table, and of the sine table."""
    return capacity, head_dim // 2
