"""The multi-token prediction layer as ONNX should see it: drafts the token after next, with a KV cache of its own.

Position i reads the embedding of token i + 1 and the hidden state of position i, and predicts token i + 2. For the
draft after that, its own hidden state takes the place of the decoder's. Head and embeddings are the decoder's.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from export.modules import ops
from export.modules.decoder import DecoderLayer, head
from export.modules.weights import Linear, RMSNorm, Source

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from quantize.model.families import Family


class Mtp(nn.Module):
    """The first layer that predicts further tokens; inputs and outputs as `runtime.ort.graph_io` names them."""

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
        self.head = head(source, family)

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
        """Logits [B, L, vocabulary] in float32, hidden states [B, T, H] behind its norm, the extended KV buffers."""
        joined = torch.cat((self.embedding_norm(inputs_embeds), self.hidden_norm(previous_hidden)), dim=-1)
        (h,) = self.join(joined)
        h, key, value = self.layer(h, (past[0], past[1]), seqlens_k, total_sequence_length, (rope_cos, rope_sin))
        hidden = self.norm(h)
        (logits,) = self.head(ops.select_positions(hidden, logit_index))
        return logits.float(), hidden, key, value
