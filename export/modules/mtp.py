"""The multi-token prediction (MTP) layer as it is traced: drafts the token after next, with its own KV cache.

Position i reads the embedding of token i + 1 and the decoder's hidden state at i, and predicts token i + 2. The next
draft reads the layer's own hidden state instead. Head and embeddings are the decoder's.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from export.modules.basic_ops import select_positions
from export.modules.decoder import DecoderLayer, head
from export.modules.linear import Linear, RMSNorm

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from export.modules.weights import Source
    from quantize.model.families import Family


class Mtp(nn.Module):
    """The first MTP layer; inputs and outputs as in `runtime.ort.graph_io`."""

    def __init__(self, source: Source, family: Family, config: PreTrainedConfig, *, full_buffers: bool = False) -> None:
        super().__init__()
        self.full_buffers = full_buffers
        name, text = family.mtp, copy.deepcopy(config.get_text_config())
        text.layer_types = ["full_attention" if text.sliding_window is None else "sliding_attention"]
        self.embedding_norm = RMSNorm(source, f"{name}.pre_fc_norm_embedding", text.rms_norm_eps)
        self.hidden_norm = RMSNorm(source, f"{name}.pre_fc_norm_hidden", text.rms_norm_eps)
        self.join = Linear(source, f"{name}.fc")
        self.layer = DecoderLayer(source, f"{name}.layers.0", text, 0, full_buffers=full_buffers)
        self.norm = RMSNorm(source, f"{name}.norm", text.rms_norm_eps)
        self.head = head(source, family, config)

    def forward(
        self,
        inputs_embeds: Tensor,
        previous_hidden: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        logit_index: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Returns logits [B, L, vocabulary] in float32, hidden states [B, T, H] after its norm, extended KV buffers."""
        joined = torch.cat((self.embedding_norm(inputs_embeds), self.hidden_norm(previous_hidden)), dim=-1)
        (h,) = self.join(joined)
        h, key, value = self.layer(h, (past[0], past[1]), seqlens_k, total_sequence_length, (rope_cos, rope_sin))
        hidden = self.norm(h)
        (logits,) = self.head(select_positions(hidden, logit_index))
        return logits.float(), hidden, key, value
