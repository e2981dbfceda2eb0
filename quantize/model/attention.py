"""Attention that says how much each token was read.

What a key or a value is worth depends on who reads it: a token that no query looks at may be quantized badly. The sum
comes out where transformers' attention gives its weights, for a hook on the attention module to find.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

READ_COUNTING = "read_counting"
QUERIES = 128  # worked on together, to bound memory: all of them would need T² scores a head


def attend(
    _: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    importance: torch.Tensor,
    **__: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one document, causal where there is no mask, and how much its tokens were read.

    query [1, heads, T, D], key and value [1, kv heads, T, D]; attention_mask [1, 1, T, T], True where a token is read;
    importance [T] of the queries. Returns the output [1, T, heads, D] and [T]: for each token the attention that it
    got, as the mean over heads and the sum over queries by their importance. It sums up to the sum of importance.
    """
    share = query.shape[1] // key.shape[1]
    keys, values = (states[0].repeat_interleave(share, 0) for states in (key, value))
    positions = torch.arange(query.shape[2], device=query.device)
    outputs, read = [], torch.zeros_like(importance)
    for rows in positions.split(QUERIES):
        readable = positions <= rows[:, None] if attention_mask is None else attention_mask[0, 0, rows]
        scores = (query[0, :, rows] @ keys.mT) * scaling
        weights = scores.masked_fill_(~readable, -torch.inf).softmax(-1)
        read += importance[rows] @ weights.mean(0)
        outputs.append(weights @ values)
    return torch.cat(outputs, 1).transpose(0, 1)[None], read


AttentionInterface.register(READ_COUNTING, attend)
AttentionMaskInterface.register(READ_COUNTING, sdpa_mask)
