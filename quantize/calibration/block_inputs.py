"""What blocks read: hidden states of documents, and the keyword arguments of transformers' modules.

Documents run one at a time, so no padding can leak into a Hessian. Indices, masks and tables are transformers' own
(imported where they are used: that takes seconds, and a wrong argument should be reported at once).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from quantize.calibration.kv_ranges import RangeRecorder
from quantize.calibration.samples import image_token
from quantize.solver.token_weights import last_layer_weights, token_weights

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from quantize.calibration.documents import DocumentSet
    from quantize.calibration.hidden_states import HiddenStates
    from quantize.model.families import Family


@dataclass(frozen=True)
class BlockInputs:
    """Everything that blocks read of one document set."""

    documents: DocumentSet
    """The documents, in order."""
    states: HiddenStates
    """Their hidden states in front of the next block."""
    decoder: DecoderInputs
    """Keyword arguments of decoder layers."""
    vision: VisionInputs | None
    """Keyword arguments of vision blocks; None for a model without vision."""


def make_block_inputs(
    documents: DocumentSet, states: HiddenStates, model: PreTrainedModel, family: Family, device: torch.device
) -> BlockInputs:
    """Make the inputs of blocks of a model, whose modules may be on the meta device."""
    image, answers = image_token(documents.config), zip(documents.ids, documents.answers, strict=True)
    weights = [(token_weights(ids, answer, image), last_layer_weights(len(ids), answer)) for ids, answer in answers]
    decoder = DecoderInputs(
        model.get_submodule(family.text),
        device,
        [inner.to(device) for inner, _ in weights],
        [last.to(device) for _, last in weights],
    )
    vision = VisionInputs(model.get_submodule(family.vision), device, documents.grids) if family.vision else None
    return BlockInputs(documents, states, decoder, vision)


def _on_device(rotary: nn.Module, device: torch.device) -> nn.Module:
    """Build a module without weights anew on a device: the skeleton's is on the meta device."""
    built: nn.Module = type(rotary)(config=rotary.config)
    return built.to(device)


@dataclass
class VisionInputs:
    """Inputs of vision blocks. Hidden states are patches [P, width] in the tower's order of windows."""

    tower: Any
    """transformers' module, on the meta device."""
    device: torch.device
    """Device of the arguments."""
    grids: list[torch.Tensor]
    """Image grids [images, 3] of each document, in patches."""
    rotary: nn.Module = field(init=False)
    """The rotary embedding of the tower."""

    def __post_init__(self) -> None:
        self.rotary = _on_device(self.tower.rotary_pos_emb, self.device)

    def to_windows(self, embedded: torch.Tensor, document: int) -> torch.Tensor:
        """Reorder embedded patches [P, width] from the processor's order to the tower's."""
        order, _ = self._windows(document)
        windowed: torch.Tensor = self.tower.permute_input_for_window_attn(embedded.cpu(), order, len(embedded))
        return windowed

    def kwargs(self, block: int, document: int) -> dict[str, Any]:
        """Make the keyword arguments of a block for a document."""
        from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

        grid, full = self.grids[document], block in self.tower.config.fullatt_block_indexes
        order, windows = self._windows(document)
        positions = get_vision_position_ids(grid, self.tower.config.spatial_merge_size).to(self.device)
        tables = self.rotary(torch.empty(0, device=self.device), positions)
        patches = int(grid.prod(-1).sum())
        return {
            "cu_seqlens": get_vision_cu_seqlens(grid) if full else windows,
            "position_embeddings": tuple(
                self.tower.permute_input_for_window_attn(table.cpu(), order, patches).to(self.device)
                for table in tables
            ),
        }

    def to_reading_order(self, merged: torch.Tensor, document: int) -> torch.Tensor:
        """Reorder image tokens [P / 4, width] from the merger's order to reading order."""
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
class DecoderInputs:
    """Inputs of decoder layers. Hidden states are [1, T, width]."""

    decoder: Any
    """transformers' module, on the meta device."""
    device: torch.device
    """Device of the arguments."""
    token_weights: list[torch.Tensor] = field(default_factory=list)
    """Token weights [T] of each document, in all layers but the last."""
    last_layer_weights: list[torch.Tensor] = field(default_factory=list)
    """Token weights [T] of each document, in the last layer and the MTP layer."""
    recorder: RangeRecorder = field(default_factory=RangeRecorder)
    """Sees the keys and values of the layer that runs."""
    rotary: nn.Module = field(init=False)
    """The rotary embedding of the decoder."""

    def __post_init__(self) -> None:
        self.rotary = _on_device(self.decoder.rotary_emb, self.device)

    def kwargs(self, layer: int, document: int) -> dict[str, Any]:
        """Make the keyword arguments of a layer for a document."""
        kinds = self.decoder.config.layer_types
        weights = self.last_layer_weights if layer == len(kinds) - 1 else self.token_weights
        sliding = kinds[layer] == "sliding_attention"
        return {"past_key_values": self.recorder, **self._kwargs(weights[document], sliding)}

    def mtp_kwargs(self, document: int) -> dict[str, Any]:
        """Make the keyword arguments of the MTP layer's decoder layers; a document is one token shorter there."""
        return self._kwargs(self.last_layer_weights[document][1:], self.decoder.config.sliding_window is not None)

    def _kwargs(self, weights: torch.Tensor, sliding: bool) -> dict[str, Any]:
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        length = len(weights)
        like = torch.empty(1, length, 1, device=self.device)  # gives masks and tables their shape, dtype and device
        positions = torch.arange(length, device=self.device)[None]
        make_mask = create_sliding_window_causal_mask if sliding else create_causal_mask
        return {
            "token_weights": weights,
            "position_embeddings": self.rotary(like, positions),
            "attention_mask": make_mask(
                config=self.decoder.config,
                inputs_embeds=like,
                attention_mask=None,
                past_key_values=None,
                position_ids=positions,
            ),
        }
