"""Attention within padded rows: ONNX Runtime and PyTorch against dense attention of each row."""

import numpy as np
import pytest
import torch

from export.modules.padded_attention import Rows, flash_attention, padded_attention
from export.onnx_graph import trace

from .operators import Call, run_on_cpu

pytestmark = pytest.mark.slow


def dense(q, k, v, head_dim):
    """Attention of one unpadded row [T, heads*D] by torch's own operator."""
    q, k, v = (x.unflatten(-1, (-1, head_dim)).transpose(0, 1) for x in (q, k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], enable_gqa=True)
    return attended[0].transpose(0, 1).flatten(-2)


def on_cuda(q, k, v, rows, head_dim):
    """As CUDA's kernel computes without a past: whatever the lengths, every row is full."""
    return padded_attention(q, k, v, rows._replace(lengths=rows.lengths * 0 + rows.longest), head_dim, on_cuda=True)


def on_cpu(q, k, v, rows, head_dim):
    return padded_attention(q, k, v, rows, head_dim, on_cuda=False)


@pytest.mark.parametrize("operator", [on_cpu, on_cuda, flash_attention])
def test_attention_within_padded_rows(operator):
    """Rows of different length in one call, longer than a kernel's block of keys, and scores from small to huge.

    What lies beyond a length is not compared, nor does it matter.
    """

    def function(q, k, v, gather, lengths, longest, scatter):
        return operator(q, k, v, Rows.from_gather(gather, lengths, longest, scatter, q.dtype), 32)

    def draw(lengths, size=1):
        lengths, longest = torch.tensor(lengths, dtype=torch.int32), max(lengths)
        q, k, v = torch.randn(len(lengths), longest, 128) * size, *torch.randn(2, len(lengths), longest, 64)
        filled = torch.arange(longest) < lengths.unsqueeze(-1)
        scatter = filled.flatten().nonzero().flatten()
        return [q, k, v, filled.long() - 1, lengths, torch.tensor(longest, dtype=torch.int32), scatter]

    heads = {0: "n", 1: "t"}
    axes = [heads, heads, heads, heads, {0: "n"}, {}, {0: "p"}]
    names = [f"in{number}" for number in range(len(axes))]
    session = run_on_cpu(trace(Call(function), [draw([5, 3])], [axes], names, ["out"]))
    for lengths, size in (([700, 4, 1, 170], 1), ([700, 4, 1, 170], 30), ([170], 1), ([1], 1)):
        inputs = draw(lengths, size)
        (output,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        rows = [dense(*(x[row, :n].double() for x in inputs[:3]), 32) for row, n in enumerate(lengths)]
        alone = torch.cat(rows).float()
        torch.testing.assert_close(function(*inputs), alone, rtol=1e-5, atol=1e-5 * size)
        np.testing.assert_allclose(output, alone.numpy(), rtol=1e-5, atol=1e-5 * size)
