"""Attention in blocks of queries against PyTorch's own, and what was read against the full matrix of weights."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from quantize.model.attention import QUERIES, attend

HEADS, KV_HEADS, WIDTH = 6, 2, 16


def states(tokens):
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(1, heads, tokens, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [2 * torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("tokens", [1, 50, 2 * QUERIES + 3])
def test_output_and_what_was_read(tokens, window):
    query, key, value = states(tokens)
    positions = torch.arange(tokens)
    mask = positions <= positions[:, None]
    if window:
        mask &= positions > positions[:, None] - window
    token_weights = torch.rand(tokens, generator=torch.Generator().manual_seed(1))
    given = mask[None, None] if window else None
    output, read = attend(None, query, key, value, given, scaling=0.3, token_weights=token_weights, unused=1)

    expected = scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(output, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)
    scores = query[0] @ key[0].repeat_interleave(HEADS // KV_HEADS, 0).mT * 0.3
    weights = torch.where(mask, scores, -torch.inf).softmax(-1)
    torch.testing.assert_close(read, torch.einsum("hqt,q->t", weights, token_weights) / HEADS, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read.sum(), token_weights.sum())
