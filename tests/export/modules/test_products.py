"""Products with stored weights: ONNX Runtime against PyTorch."""

import pytest
import torch

from export.modules.products import EXACT, INT8, matmul_dense, matmul_nbits, matmul_nf4

from .operators import check


def test_matmul_dense():
    check(matmul_dense, (torch.randn(2, 3, 32), torch.randn(24, 32)), ({0: "b"}, {}))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [16, 32, 128])
def test_matmul_nbits(bits, group):
    packed = torch.randint(0, 256, (24, 256 // group, group * bits // 8), dtype=torch.uint8)
    scales = torch.randn(24, 256 // group) / 100  # they may be negative
    check(
        lambda x, p, s: matmul_nbits(x, p, s, bits, accuracy_level=1),
        (torch.randn(5, 256), packed, scales),
        ({0: "rows"}, {}, {}),
    )


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
