"""Attention over a KV cache: ONNX Runtime against PyTorch, and PyTorch against its own attention."""

import numpy as np
import pytest
import torch

from export.modules.cached_attention import cached_attention, resident
from export.onnx_graph import trace

from .operators import Call, run_on_cpu

HEADS, KV_HEADS, WIDTH = 4, 2, 16
ATTENTION_AXES = [
    {0: "batch", 1: "tokens"},
    {0: "batch", 1: "tokens"},
    {0: "batch", 1: "tokens"},
    {0: "batch", 2: "capacity"},
    {0: "batch", 2: "capacity"},
    {0: "batch"},
    {},
    {0: "context"},
    {0: "context"},
]


def attention_inputs(batch, tokens, before, capacity):
    """Random inputs; the rows of a batch are 5 tokens apart where there is a past."""
    totals = before + tokens + torch.arange(batch) * (5 if before else 0)
    q, k, v = torch.randn(batch, tokens, HEADS * WIDTH), *torch.randn(2, batch, tokens, KV_HEADS * WIDTH)
    angles = torch.randn(80, WIDTH // 2)
    past = torch.randn(2, batch, KV_HEADS, capacity, WIDTH)
    return [q, k, v, *past, (totals - 1).int(), totals.max().int(), angles.cos(), angles.sin()], totals.tolist()


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("rope", [True, False])
def test_cached_attention(window, rope):
    """Prompt, chunk over a past and ragged decode, in buffers that are exactly as long as they must be."""

    def step(q, k, v, key, value, seqlens_k, total, cos, sin):
        return cached_attention(q, k, v, key, value, seqlens_k, total, (cos, sin) if rope else None, window)

    capacity = window or 64
    names = [f"in{i}" for i in range(9)]
    model = trace(
        Call(step), [attention_inputs(2, 3, 0, capacity)[0]], [ATTENTION_AXES], names, ["out", "key", "value"]
    )
    session = run_on_cpu(model)
    for batch, tokens, before in [(1, 20, 0), (1, 5, 6), (1, 9, 30), (3, 1, 0), (3, 1, 12)]:
        inputs, totals = attention_inputs(batch, tokens, before, capacity)
        feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        output, key, value = session.run(None, feeds)
        expected, expected_key, expected_value = step(*inputs)
        np.testing.assert_allclose(output, expected.numpy(), rtol=1e-5, atol=1e-5)
        for row, total in enumerate(totals):
            kept = total if window is None else resident(total, capacity, window)
            np.testing.assert_allclose(key[row, :, :kept], expected_key[row, :, :kept].numpy(), rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(value[row, :, :kept], expected_value[row, :, :kept].numpy())


@pytest.mark.parametrize("window", [None, 8])
def test_cached_attention_over_int8(window):
    """Codes are those of the kernel, but for those on the edge between two; what is attended to is the codes."""
    scales = tuple(torch.rand(2, 1, KV_HEADS, 1, WIDTH) * 0.02 + 0.01)

    def step(q, k, v, key, value, seqlens_k, total, cos, sin):
        return cached_attention(q, k, v, key, value, seqlens_k, total, (cos, sin), window, scales)

    def inputs_of(batch, tokens, before):
        inputs, totals = attention_inputs(batch, tokens, before, window or 64)
        inputs[3:5] = (torch.randint(-128, 128, past.shape, dtype=torch.int8) for past in inputs[3:5])
        return inputs, totals

    names = [f"in{i}" for i in range(9)]
    model = trace(Call(step), [inputs_of(2, 3, 0)[0]], [ATTENTION_AXES], names, ["out", "key", "value"])
    session = run_on_cpu(model)
    for batch, tokens, before in [(1, 20, 0), (1, 5, 6), (1, 9, 30), (3, 1, 12)]:
        inputs, totals = inputs_of(batch, tokens, before)
        found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        expected = step(*inputs)
        np.testing.assert_allclose(found[0], expected[0].numpy(), rtol=0, atol=0.02)
        for codes, reference in zip(found[1:], expected[1:], strict=True):
            for row, total in enumerate(totals):
                kept = total if window is None else resident(total, window, window)
                off = np.abs(codes[row, :, :kept].astype(int) - reference[row, :, :kept].numpy().astype(int))
                assert off.max() <= 1
                assert off.mean() < 0.01


def test_cached_attention_equals_torch_sdpa():
    """The arithmetic in eager mode itself, against PyTorch's attention with an explicit mask."""
    q, k, v = (torch.randn(1, heads, 20, 16) for heads in (4, 2, 2))
    empty = torch.zeros(1, 2, 64, 16)
    for window in (None, 6):
        output, _, _ = cached_attention(
            *(x.transpose(1, 2).flatten(-2) for x in (q, k, v)),
            empty, empty, torch.tensor([19]), torch.tensor(20), None, window,
        )  # fmt: skip
        distance = torch.arange(20)[:, None] - torch.arange(20)
        allowed = (distance >= 0) & (distance < (window or 20))
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)
        torch.testing.assert_close(output, expected.transpose(1, 2).flatten(-2))
