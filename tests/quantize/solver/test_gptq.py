"""The solver against an oracle that follows the derivation, one column at a time in float64, inverting as it goes."""

import numpy as np
import pytest
import torch

from quantize.solver import gptq
from quantize.solver.gptq import add_inputs, factorise, output_energy
from quantize.solver.quantizers import NF4_VALUES, NF4Quantizer, UniformQuantizer, dequantize, rtn


def solve(W, factor, quantizer):
    """Codes and scales with the scales that cover the largest weights."""
    scales = quantizer.fit(W)
    return gptq.solve(W, factor, scales, quantizer), scales


def oracle(W, H, group_size, damping, bits=None):
    """Optimal Brain Surgeon, quantizing columns from the most to the least active. Returns the quantized weights.

    bits: integers with an fp16 scale; None: the NF4 codebook. Everything is a plain loop over numpy arrays: H is
    inverted anew for the columns that are left, and the error of a column is spread over them at once.
    """
    W, original = W.astype(np.float64).copy(), W.astype(np.float64)
    N, K = W.shape
    H = H.astype(np.float64).copy()
    dead = np.diag(H) == 0
    mean = np.diag(H)[~dead].mean()
    order = sorted(range(K), key=lambda k: (H[k, k], k), reverse=True)
    for k in range(K):
        H[k, k] = (mean if dead[k] else H[k, k]) + damping * mean
    result = np.zeros_like(W)
    left = list(order)
    while left:
        inverse = np.linalg.inv(H[np.ix_(left, left)])
        k = left[0]
        group = original[:, k // group_size * group_size : (k // group_size + 1) * group_size]
        for n in range(N):
            largest = np.abs(group[n]).max()
            if bits is None:
                nearest = min(np.array(NF4_VALUES), key=lambda v: abs(v - W[n, k] / largest))
                result[n, k] = np.float32(nearest) * np.float32(largest)
            else:
                scale = float(np.float16(np.float32(largest) / np.float32(2 ** (bits - 1) - 0.5)))
                code = min(max(np.round(W[n, k] / scale), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
                result[n, k] = code * scale
            error = (W[n, k] - result[n, k]) / inverse[0, 0]
            W[n, left] -= error * inverse[0]
        left = left[1:]
    return result


def problem(N, K, T, seed=0, dead=()):
    """Weights, and correlated inputs of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(T, K, generator=generator) @ torch.randn(K, K, generator=generator)
    X *= torch.rand(K, generator=generator) ** 2 * 3
    X[:, list(dead)] = 0
    W = torch.randn(N, K, generator=generator)
    H = torch.zeros(K, K, dtype=torch.float64)
    add_inputs(H, X.double())
    return W, H


QUANTIZERS = [UniformQuantizer(4, 16), UniformQuantizer(4, 32), UniformQuantizer(8, 32), NF4Quantizer(32)]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=["4 g16", "4 g32", "8 g32", "nf4 g32"])
@pytest.mark.parametrize(("N", "K", "T"), [(5, 32, 200), (3, 96, 40), (4, 160, 1000)])
def test_the_solver_is_the_oracle(quantizer, N, K, T):
    W, H = problem(N, K, T)
    factor = factorise(H)
    codes, scales = solve(W.double(), factor, quantizer)
    bits = None if isinstance(quantizer, NF4Quantizer) else quantizer.bits
    expected = oracle(W.numpy(), H.numpy(), quantizer.group_size, factor.damping, bits)
    np.testing.assert_allclose(dequantize(codes, scales, quantizer).double().numpy(), expected, rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=["4 g16", "4 g32", "8 g32", "nf4 g32"])
def test_float32_is_enough(quantizer):
    W, H = problem(64, 256, 2000)
    double = solve(W.double(), factorise(H), quantizer)
    single = solve(W, factorise(H.float()), quantizer)
    assert (double[0] == single[0]).float().mean() > 0.99
    errors = [output_energy(W - dequantize(*s, quantizer), H.float()) for s in (double, single)]
    assert errors[1] == pytest.approx(errors[0], rel=0.01)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=["4 g16", "4 g32", "8 g32", "nf4 g32"])
def test_the_error_is_a_fraction_of_rounding(quantizer, seed):
    W, H = problem(32, 128, 500, seed)
    H = H.float()
    solved = output_energy(W - dequantize(*solve(W, factorise(H), quantizer), quantizer), H)
    rounded = output_energy(W - dequantize(*rtn(W, quantizer), quantizer), H)
    assert solved < 0.5 * rounded


def test_stacked_weights_are_solved_as_if_alone():
    W, H = problem(24, 64, 300)
    factor, quantizer = factorise(H), UniformQuantizer(4, 32)
    together = solve(W.double(), factor, quantizer)
    for rows in (slice(0, 16), slice(16, 20), slice(20, 24)):
        alone = solve(W[rows].double(), factor, quantizer)
        assert torch.equal(together[0][rows], alone[0])
        assert torch.equal(together[1][rows], alone[1])


@pytest.mark.parametrize("K", [48, 603, 2100])
def test_the_factor_is_that_of_the_inverse(K):
    """Inverted at once, by halves of unequal size, and by halves of more than a stripe."""
    _, H = problem(1, K, 2 * K)
    factor = factorise(H)
    damped = H + factor.damping * H.diagonal().mean() * torch.eye(K, dtype=torch.float64)
    inverse = torch.linalg.inv(damped[factor.order][:, factor.order])
    torch.testing.assert_close(factor.V.T @ factor.V, inverse)
    assert torch.equal(factor.V, factor.V.tril())
    assert torch.equal(H.diagonal()[factor.order], H.diagonal().sort().values)
    gptq.damp(H, factor.damping)
    torch.testing.assert_close(H, damped)


def test_dead_columns_are_rounded_and_move_nothing():
    dead = [0, 17, 40]
    W, H = problem(8, 64, 300, dead=dead)
    W[:, dead] *= 0.3  # never the largest of a group: scales do not depend on them
    quantizer = UniformQuantizer(4, 32)
    factor = factorise(H)
    codes, _ = solve(W.double(), factor, quantizer)
    nearest, _ = rtn(W, quantizer)
    assert torch.equal(codes[:, dead], nearest[:, dead])
    # the live columns' codes are those of the problem without the dead ones, whatever stands in them
    other = W.clone()
    other[:, dead] *= 0.5
    again, _ = solve(other.double(), factor, quantizer)
    alive = [k for k in range(64) if k not in dead]
    assert torch.equal(codes[:, alive], again[:, alive])
    assert not torch.equal(codes[:, dead], again[:, dead])
    assert sorted(factor.order[:3].tolist()) == dead


def test_damping_grows_until_the_factorisation_succeeds():
    W, H = problem(8, 64, 300)
    H -= 0.3 * H.diagonal().mean() * torch.eye(64, dtype=torch.float64)  # no longer positive definite
    assert torch.linalg.eigvalsh(H).min() < -0.01 * H.diagonal().mean()
    factor = factorise(H)
    assert 0.1 <= factor.damping <= 10
    codes, scales = solve(W.double(), factor, UniformQuantizer(4, 32))
    assert torch.isfinite(dequantize(codes, scales, UniformQuantizer(4, 32))).all()


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_a_hessian_without_any_use_has_no_factor(value):
    assert factorise(torch.full((32, 32), value)) is None


def test_inputs_that_were_never_used_are_plainly_rounded():
    W, _ = problem(8, 32, 10)
    quantizer = UniformQuantizer(4, 32)
    codes, _ = solve(W, factorise(torch.zeros(32, 32)), quantizer)
    assert torch.equal(codes, rtn(W, quantizer)[0])


def test_without_correlation_solving_is_rounding():
    W, _ = problem(8, 64, 10)
    quantizer = UniformQuantizer(4, 32)
    factor = factorise(torch.diag(torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.1))
    assert torch.equal(solve(W, factor, quantizer)[0], rtn(W, quantizer)[0])


@pytest.mark.parametrize("K", [16, 2100])
def test_energy_is_the_norm_of_the_outputs(K):
    """Of one stripe of the Hessian, and of several."""
    generator = torch.Generator().manual_seed(0)
    X, D = torch.randn(100, K, generator=generator), torch.randn(20, K, generator=generator)
    H = torch.zeros(K, K)
    add_inputs(H, X[:70])
    add_inputs(H, X[70:])
    assert output_energy(D, H) == pytest.approx(float((D @ X.T).square().sum()), rel=1e-5)
