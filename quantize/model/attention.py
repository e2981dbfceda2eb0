"""Attention that also returns how much attention each token received.

A key or a value matters as much as it is read: a token that no query attends to may be quantized badly. The sum takes
the place of transformers' attention weights, where a hook on the attention module finds it.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

READ_COUNTING = "read_counting"
QUERIES = 128  # processed together, to bound memory: all of them would need T² scores per head


def attend(
    _: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    token_weights: torch.Tensor,
    **__: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the attention of one document, causal where there is no mask, and what each token received of it.

    query [1, heads, T, D], key and value [1, kv heads, T, D]; attention_mask [1, 1, T, T], True where a token is read;
    token_weights [T] of the queries. Returns the output [1, T, heads, D] and [T], the attention that each token
    received: the mean over heads of the sum over queries, weighted by their token weights.
    """
    share = query.shape[1] // key.shape[1]
    keys, values = (states[0].repeat_interleave(share, 0) for states in (key, value))
    positions = torch.arange(query.shape[2], device=query.device)
    outputs, received = [], torch.zeros_like(token_weights)
    for rows in positions.split(QUERIES):
        readable = positions <= rows[:, None] if attention_mask is None else attention_mask[0, 0, rows]
        scores = (query[0, :, rows] @ keys.mT) * scaling
        weights = scores.masked_fill_(~readable, -torch.inf).softmax(-1)
        received += token_weights[rows] @ weights.mean(0)
        outputs.append(weights @ values)
    return torch.cat(outputs, 1).transpose(0, 1)[None], received


AttentionInterface.register(READ_COUNTING, attend)
AttentionMaskInterface.register(READ_COUNTING, sdpa_mask)
