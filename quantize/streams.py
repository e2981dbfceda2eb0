"""Activations of all calibration documents on their way through a tower, and what its blocks want beside them.

Documents run one at a time, so there is no padding that could leak into a Hessian. Indices, masks and tables are
transformers' own (imported where they are used: that takes seconds, and a wrong argument should be said at once).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


def _alive(rotary: nn.Module, device: torch.device) -> nn.Module:
    """Build a module without weights anew, for the skeleton's is on the meta device."""
    made: nn.Module = type(rotary)(config=rotary.config)
    return made.to(device)


@dataclass
class VisionStream:
    """Patches [P, width] of every document in front of the next vision block, in the tower's order of windows."""

    tower: Any  # transformers' module, on the meta device
    device: torch.device
    hidden: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rotary = _alive(self.tower.rotary_pos_emb, self.device)
        self._plans: list[dict[str, Any]] = []

    def add(self, embedded: torch.Tensor, grid: torch.Tensor) -> None:
        """Add a document: embedded patches [P, width] in the processor's order and their grid [images, 3]."""
        from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

        tower, P = self.tower, len(embedded)
        order, windows = get_vision_window_index(
            grid, tower.config.spatial_merge_size, tower.config.window_size, tower.config.patch_size
        )
        positions = get_vision_position_ids(grid, tower.config.spatial_merge_size)
        tables = self._rotary(embedded, positions.to(self.device))
        self._plans.append(
            {
                "position_embeddings": tuple(tower.permute_input_for_window_attn(t.cpu(), order, P) for t in tables),
                "frames": get_vision_cu_seqlens(grid),
                "windows": windows,
                "back": torch.argsort(order),
            }
        )
        self.hidden.append(tower.permute_input_for_window_attn(embedded.cpu(), order, P))

    def context(self, block: int, document: int) -> dict[str, Any]:
        """Keyword arguments of a block for a document."""
        plan = self._plans[document]
        full = block in self.tower.config.fullatt_block_indexes
        return {
            "cu_seqlens": plan["frames" if full else "windows"],
            "position_embeddings": tuple(table.to(self.device) for table in plan["position_embeddings"]),
        }

    def image_tokens(self) -> list[torch.Tensor]:
        """Image embeddings [P / 4, width] of every document in reading order, once the merger has run."""
        return [merged[plan["back"]] for merged, plan in zip(self.hidden, self._plans, strict=True)]


@dataclass
class DecoderStream:
    """Hidden states [1, T, width] of every document in front of the next decoder layer."""

    decoder: Any  # transformers' module, on the meta device
    device: torch.device
    hidden: list[torch.Tensor]

    def __post_init__(self) -> None:
        self._rotary = _alive(self.decoder.rotary_emb, self.device)

    def context(self, block: int, document: int) -> dict[str, Any]:
        """Keyword arguments of a layer for a document."""
        sliding = self.decoder.config.layer_types[block] == "sliding_attention"
        return self._context(self.hidden[document], sliding)

    def mtp_context(self, document: int) -> dict[str, Any]:
        """Keyword arguments of the MTP layer's decoder layers for a document, which is one token shorter there."""
        return self._context(self.hidden[document][:, 1:], self.decoder.config.sliding_window is not None)

    def _context(self, hidden: torch.Tensor, sliding: bool) -> dict[str, Any]:
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        hidden = hidden.to(self.device)
        positions = torch.arange(hidden.shape[1], device=self.device)[None]
        make_mask = create_sliding_window_causal_mask if sliding else create_causal_mask
        return {
            "position_embeddings": self._rotary(hidden, positions),
            "attention_mask": make_mask(
                config=self.decoder.config,
                inputs_embeds=hidden,
                attention_mask=None,
                past_key_values=None,
                position_ids=positions,
            ),
        }
