"""Each operator: ONNX Runtime's kernel, through a traced graph, against the torch arithmetic beside it."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from export.modules import ops
from export.trace import trace

TOLERANCE = 2e-6  # float32 sums in another order


class Call(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return self.function(*inputs)


def run_on_cpu(model: ir.Model) -> ort.InferenceSession:
    return ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"])


def check(function, inputs, axes, count=1, tolerance=TOLERANCE):
    """Trace with these inputs, run the graph on them, compare every output with eager mode."""
    names, results = [f"in{i}" for i in range(len(inputs))], [f"out{i}" for i in range(count)]
    module = Call(function)
    model = trace(module, [list(inputs)], [list(axes)], names, results)
    session = run_on_cpu(model)
    outputs = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    expected = function(*inputs)
    for output, reference in zip(outputs, expected if count > 1 else [expected], strict=True):
        assert output.shape == tuple(reference.shape)
        np.testing.assert_allclose(
            output, reference.numpy(), rtol=tolerance, atol=tolerance * float(reference.abs().max())
        )


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_rms_norm():
    check(lambda x, w: ops.rms_norm(x, w, 1e-5), (torch.randn(2, 3, 64) * 7, torch.rand(64)), ({0: "b"}, {}))


def test_linear():
    check(ops.linear, (torch.randn(2, 3, 32), torch.randn(24, 32)), ({0: "b"}, {}))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [16, 32, 128])
def test_matmul_nbits(bits, group):
    packed = torch.randint(0, 256, (24, 256 // group, group * bits // 8), dtype=torch.uint8)
    scales = torch.randn(24, 256 // group) / 100  # they may be negative
    check(
        lambda x, p, s: ops.matmul_nbits(x, p, s, bits, accuracy_level=1),
        (torch.randn(5, 256), packed, scales),
        ({0: "rows"}, {}, {}),
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_nbits_rounds_activations_as_the_kernel_does(bits):
    """The kernel rounds where weights are initializers, which it packs; not where they are inputs."""
    packed = torch.randint(0, 256, (24, 256 // 128, 128 * bits // 8), dtype=torch.uint8)
    x, scales = torch.randn(5, 256), torch.rand(24, 256 // 128) / 100
    check(lambda x: ops.matmul_nbits(x, packed, scales, bits, ops.INT8), (x,), ({0: "rows"},), tolerance=1e-5)
    exact, rounded = (ops.matmul_nbits(x, packed, scales, bits, level) for level in (ops.EXACT, ops.INT8))
    assert (exact - rounded).abs().max() > 1e-3 * exact.abs().max()


def test_matmul_nf4():
    packed, absmax = torch.randint(0, 256, (24 * 128 // 2,), dtype=torch.uint8), torch.randn(24 * 128 // 64)
    check(
        lambda x, p, a: ops.matmul_nf4(x, p, a, 24, 128, 64), (torch.randn(5, 128), packed, absmax), ({0: "r"}, {}, {})
    )


def test_split_reshape_and_selection():
    x = torch.randn(2, 6, 12)
    check(lambda x: ops.split(x, [8, 3, 1]), (x,), ({0: "b"},), count=3)
    check(lambda x: ops.reshape(x, 0, -1, 3), (x,), ({0: "b"},))
    check(ops.select_positions, (x, torch.tensor([[5, 0], [1, 1]])), ({0: "b"}, {0: "b"}))


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
        return ops.cached_attention(q, k, v, key, value, seqlens_k, total, (cos, sin) if rope else None, window)

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
            kept = total if window is None else ops.resident(total, capacity, window)
            np.testing.assert_allclose(key[row, :, :kept], expected_key[row, :, :kept].numpy(), rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(value[row, :, :kept], expected_value[row, :, :kept].numpy())


@pytest.mark.parametrize("window", [None, 8])
def test_cached_attention_over_int8(window):
    """Codes are those of the kernel, but for those on the edge between two; what is attended to is the codes."""
    scales = tuple(torch.rand(2, 1, KV_HEADS, 1, WIDTH) * 0.02 + 0.01)

    def step(q, k, v, key, value, seqlens_k, total, cos, sin):
        return ops.cached_attention(q, k, v, key, value, seqlens_k, total, (cos, sin), window, scales)

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
                kept = total if window is None else ops.resident(total, window, window)
                off = np.abs(codes[row, :, :kept].astype(int) - reference[row, :, :kept].numpy().astype(int))
                assert off.max() <= 1
                assert off.mean() < 0.01


def test_cached_attention_equals_torch_sdpa():
    """The arithmetic in eager mode itself, against PyTorch's attention with an explicit mask."""
    q, k, v = (torch.randn(1, heads, 20, 16) for heads in (4, 2, 2))
    empty = torch.zeros(1, 2, 64, 16)
    for window in (None, 6):
        output, _, _ = ops.cached_attention(
            *(x.transpose(1, 2).flatten(-2) for x in (q, k, v)),
            empty, empty, torch.tensor([19]), torch.tensor(20), None, window,
        )  # fmt: skip
        distance = torch.arange(20)[:, None] - torch.arange(20)
        allowed = (distance >= 0) & (distance < (window or 20))
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)
        torch.testing.assert_close(output, expected.transpose(1, 2).flatten(-2))


def dense(q, k, v, head_dim):
    """Attention of one unpadded row [T, heads*D] by torch's own operator."""
    q, k, v = (x.unflatten(-1, (-1, head_dim)).transpose(0, 1) for x in (q, k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], enable_gqa=True)
    return attended[0].transpose(0, 1).flatten(-2)


def on_cuda(q, k, v, rows, head_dim):
    """As CUDA's kernel computes without a past: whatever the lengths, every row is full."""
    return ops.padded_attention(q, k, v, rows._replace(lengths=rows.lengths * 0 + rows.longest), head_dim, on_cuda=True)


def on_cpu(q, k, v, rows, head_dim):
    return ops.padded_attention(q, k, v, rows, head_dim, on_cuda=False)


@pytest.mark.parametrize("operator", [on_cpu, on_cuda, ops.flash_attention])
def test_attention_within_padded_rows(operator):
    """Rows of different length in one call, longer than a kernel's block of keys, and scores from small to huge.

    What lies beyond a length is not compared, nor does it matter.
    """

    def function(q, k, v, gather, lengths, longest, scatter):
        return operator(q, k, v, ops.Rows.of(gather, lengths, longest, scatter, q.dtype), 32)

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
