"""Ranges of keys and values, from which `export` computes the scales of an int8 KV cache.

Keys are recorded as a cache would store them, after norm and RoPE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

KV_SCALES = "kv_scales.json"

Ranges = dict[str, list[list[float]]]
"""Of one layer: the largest magnitude [kv heads, head dim] of each channel of "key" and of "value"."""


class RangeRecorder:
    """A stand-in for transformers' KV cache in a layer: keeps the largest magnitude of each channel, and no tokens.

    maxima: [kv heads, head dim] of "key" and of "value".
    """

    def __init__(self) -> None:
        self.maxima: dict[str, torch.Tensor] = {}

    def update(self, key: torch.Tensor, value: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Record keys and values [B, kv heads, T, head dim] of new tokens. Returns them as the whole cache."""
        for name, states in (("key", key), ("value", value)):
            maximum = states.abs().amax((0, 2))
            self.maxima[name] = torch.maximum(self.maxima.get(name, maximum), maximum)
        return key, value

    def ranges(self) -> Ranges:
        """Return the maxima as JSON can hold them, with six digits."""
        return {name: [_rounded(head) for head in maximum.tolist()] for name, maximum in self.maxima.items()}


def _rounded(channels: Sequence[float]) -> list[float]:
    return [float(f"{channel:.6g}") for channel in channels]
