"""What the blocks of a tower want beside the hidden states of a document.

Documents run one at a time, so there is no padding that could leak into a Hessian. Indices, masks and tables are
transformers' own (imported where they are used: that takes seconds, and a wrong argument should be said at once).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from quantize.calibration.kv_ranges import RangeRecorder

if TYPE_CHECKING:
    from torch import nn


def _alive(rotary: nn.Module, device: torch.device) -> nn.Module:
    """Build a module without weights anew, for the skeleton's is on the meta device."""
    made: nn.Module = type(rotary)(config=rotary.config)
    return made.to(device)


@dataclass
class VisionStream:
    """Documents by the grids [images, 3] of their pictures. Patches [P, width] pass in the tower's order of windows."""

    tower: Any  # transformers' module, on the meta device
    device: torch.device
    grids: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rotary = _alive(self.tower.rotary_pos_emb, self.device)

    def windowed(self, embedded: torch.Tensor, document: int) -> torch.Tensor:
        """Put embedded patches [P, width], which are in the processor's order, in the tower's."""
        order, _ = self._windows(document)
        windowed: torch.Tensor = self.tower.permute_input_for_window_attn(embedded.cpu(), order, len(embedded))
        return windowed

    def context(self, block: int, document: int) -> dict[str, Any]:
        """Keyword arguments of a block for a document."""
        from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

        grid, full = self.grids[document], block in self.tower.config.fullatt_block_indexes
        order, windows = self._windows(document)
        positions = get_vision_position_ids(grid, self.tower.config.spatial_merge_size).to(self.device)
        tables = self._rotary(torch.empty(0, device=self.device), positions)
        patches = int(grid.prod(-1).sum())
        return {
            "cu_seqlens": get_vision_cu_seqlens(grid) if full else windows,
            "position_embeddings": tuple(
                self.tower.permute_input_for_window_attn(table.cpu(), order, patches).to(self.device)
                for table in tables
            ),
        }

    def image_tokens(self, merged: torch.Tensor, document: int) -> torch.Tensor:
        """Put image embeddings [P / 4, width] as the merger gives them in reading order."""
        order, _ = self._windows(document)
        return merged[torch.argsort(order)]

    def _windows(self, document: int) -> tuple[torch.Tensor, torch.Tensor]:
        from transformers.vision_utils import get_vision_window_index

        config = self.tower.config
        order, edges = get_vision_window_index(
            self.grids[document], config.spatial_merge_size, config.window_size, config.patch_size
        )
        return order, edges


@dataclass
class DecoderStream:
    """Documents by the importance [T] of their tokens, and in the last layer. Hidden states pass as [1, T, width].

    recorder: sees the keys and values of the layer that runs.
    """

    decoder: Any  # transformers' module, on the meta device
    device: torch.device
    importance: list[torch.Tensor] = field(default_factory=list)
    predicting: list[torch.Tensor] = field(default_factory=list)
    recorder: RangeRecorder = field(default_factory=RangeRecorder)

    def __post_init__(self) -> None:
        self._rotary = _alive(self.decoder.rotary_emb, self.device)

    def context(self, block: int, document: int) -> dict[str, Any]:
        """Keyword arguments of a layer for a document."""
        layers = self.decoder.config.layer_types
        sliding, last = layers[block] == "sliding_attention", block == len(layers) - 1
        importance = self.predicting if last else self.importance
        return {"past_key_values": self.recorder, **self._context(importance[document], sliding)}

    def mtp_context(self, document: int) -> dict[str, Any]:
        """Keyword arguments of the MTP layer's decoder layers for a document, which is one token shorter there."""
        return self._context(self.predicting[document][1:], self.decoder.config.sliding_window is not None)

    def _context(self, importance: torch.Tensor, sliding: bool) -> dict[str, Any]:
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        length = len(importance)
        like = torch.empty(1, length, 1, device=self.device)  # whose shape, type and place masks and tables take
        positions = torch.arange(length, device=self.device)[None]
        make_mask = create_sliding_window_causal_mask if sliding else create_causal_mask
        return {
            "importance": importance,
            "position_embeddings": self._rotary(like, positions),
            "attention_mask": make_mask(
                config=self.decoder.config,
                inputs_embeds=like,
                attention_mask=None,
                past_key_values=None,
                position_ids=positions,
            ),
        }
