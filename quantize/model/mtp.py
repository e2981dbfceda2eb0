"""The multi-token prediction (MTP) layer: transformers has no module for it and drops it from a checkpoint.

Tensors are named as in EXAONE 4.5's release: `mtp.fc`, `mtp.pre_fc_norm_embedding`, `mtp.pre_fc_norm_hidden`,
`mtp.norm` and `mtp.layers.0.*`, a standard decoder layer with a sliding window. Its head is the model's.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class MtpLayer(nn.Module):
    """Drafts the token after next. layers: number of decoder layers side by side, each with a draft of its own."""

    def __init__(self, decoder: Any, config: PreTrainedConfig, layers: int) -> None:  # noqa: ANN401
        """Build it from the same kinds of modules as `decoder`, transformers' text model."""
        super().__init__()
        width, block, norm = config.hidden_size, type(decoder.layers[0]), type(decoder.norm)
        sliding = copy.deepcopy(config)
        sliding.layer_types = ["full_attention" if config.sliding_window is None else "sliding_attention"] * layers
        self.pre_fc_norm_embedding = norm(width, config.rms_norm_eps)
        self.pre_fc_norm_hidden = norm(width, config.rms_norm_eps)
        self.fc = nn.Linear(2 * width, width, bias=False)
        self.layers = nn.ModuleList([block(sliding, layer) for layer in range(layers)])
        self.norm = norm(width, config.rms_norm_eps)

    def forward(self, hidden: torch.Tensor, embeddings: torch.Tensor, **context: object) -> list[torch.Tensor]:
        """Compute the hidden states of each draft, [B, T - 1, H].

        hidden: hidden states after the last norm [B, T, H]. embeddings: of tokens [B, T, H]. context: keyword
        arguments of a decoder layer for T - 1 tokens. Position i reads hidden state i and the embedding of token i + 1,
        and drafts token i + 2.
        """
        parts = (self.pre_fc_norm_embedding(embeddings[:, 1:]), self.pre_fc_norm_hidden(hidden[:, :-1]))
        states = self.fc(torch.cat(parts, -1))
        return [self.norm(layer(states, **context)) for layer in self.layers]
