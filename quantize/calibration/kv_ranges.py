"""How large keys and values become: what an int8 KV cache needs to know.

Each decoder layer's keys are seen where a cache would store them, after norm and RoPE.
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
    """Takes the place of transformers' KV cache in a layer: keeps nothing but the largest magnitudes."""

    def __init__(self) -> None:
        self.largest: dict[str, torch.Tensor] = {}

    def update(self, key: torch.Tensor, value: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Look at keys and values [B, kv heads, T, head dim] of new tokens and hand them back, as all there are."""
        for name, states in (("key", key), ("value", value)):
            largest = states.abs().amax((0, 2))
            self.largest[name] = torch.maximum(self.largest.get(name, largest), largest)
        return key, value

    def ranges(self) -> Ranges:
        """What was seen, as JSON can hold it."""
        return {name: [_rounded(head) for head in largest.tolist()] for name, largest in self.largest.items()}


def _rounded(channels: Sequence[float]) -> list[float]:
    return [float(f"{channel:.6g}") for channel in channels]
