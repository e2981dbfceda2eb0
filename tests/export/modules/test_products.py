"""Products with stored weights: ONNX Runtime against PyTorch."""

from itertools import product

import pytest
import torch

from export.modules.products import EXACT, INT8, matmul_dense, matmul_nbits, matmul_nf4

from .operators import check


def test_matmul_dense():
    check(matmul_dense, (torch.randn(2, 3, 32), torch.randn(24, 32)), ({0: "b"}, {}))


def test_matmul_nbits():
    """Products of all formats side by side: a trace takes as long for one as for all."""
    formats, weights = list(product((4, 8), (16, 32, 128))), []
    for bits, group in formats:
        weights.append(torch.randint(0, 256, (24, 256 // group, group * bits // 8), dtype=torch.uint8))
        weights.append(torch.randn(24, 256 // group) / 100)  # they may be negative

    def products(x, *stored):
        pairs = zip(formats, stored[::2], stored[1::2], strict=True)
        return tuple(matmul_nbits(x, packed, scales, bits, EXACT) for (bits, _), packed, scales in pairs)

    check(products, (torch.randn(5, 256), *weights), ({0: "rows"}, *({} for _ in weights)), len(formats))


@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_nbits_rounds_activations_as_the_kernel_does(bits):
    """The kernel rounds where weights are initializers, which it packs; not where they are inputs."""
    packed = torch.randint(0, 256, (24, 256 // 128, 128 * bits // 8), dtype=torch.uint8)
    x, scales = torch.randn(5, 256), torch.rand(24, 256 // 128) / 100
    check(lambda x: matmul_nbits(x, packed, scales, bits, INT8), (x,), ({0: "rows"},), tolerance=1e-5)
    exact, rounded = (matmul_nbits(x, packed, scales, bits, level) for level in (EXACT, INT8))
    assert (exact - rounded).abs().max() > 1e-3 * exact.abs().max()


def test_matmul_nf4():
    packed, absmax = torch.randint(0, 256, (24 * 128 // 2,), dtype=torch.uint8), torch.randn(24 * 128 // 64)
    check(lambda x, p, a: matmul_nf4(x, p, a, 24, 128, 64), (torch.randn(5, 128), packed, absmax), ({0: "r"}, {}, {}))
