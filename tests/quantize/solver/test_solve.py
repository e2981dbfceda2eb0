"""From weights and a Hessian to codes and scales: the whole solver, and what it does where the Hessian says nothing."""

import pytest
import torch

from quantize.solver.gptq import factorise
from quantize.solver.input_errors import InputErrors
from quantize.solver.quantizers import NF4Quantizer, UniformQuantizer, dequantize, rtn
from quantize.solver.solve import solve, solve_together

from .test_gptq import problem

QUANTIZERS = [UniformQuantizer(4, 32), UniformQuantizer(8, 32), NF4Quantizer(32)]
IDS = ["4", "8", "nf4"]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=IDS)
def test_linears_that_share_inputs_are_solved_as_if_alone_and_reported_apart(quantizer):
    W, H = problem(24, 64, 300)
    H, before = H.float(), H.float()
    together = solve_together([W[:16], W[16:]], H, quantizer, "gptq")
    assert torch.equal(H, before)
    for rows, found in zip((slice(0, 16), slice(16, 24)), together, strict=True):
        (alone,) = solve_together([W[rows]], H, quantizer, "gptq")
        assert torch.equal(found.codes, alone.codes)
        assert torch.equal(found.scales, alone.scales)
        difference, rounded = W[rows] - found.weight, W[rows] - dequantize(*rtn(W[rows], quantizer), quantizer)
        energy = float((W[rows] @ H * W[rows]).sum())
        assert found.error == pytest.approx(float((difference @ H * difference).sum()) / energy, rel=1e-4)
        assert found.error_rtn == pytest.approx(float((rounded @ H * rounded).sum()) / energy, rel=1e-4)
        assert found.error < 0.7 * found.error_rtn
        assert found.damping == 0.01


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=IDS)
def test_a_hessian_of_no_use_leaves_plain_rounding(quantizer):
    W, _ = problem(8, 64, 10)
    H = torch.full((64, 64), 3e38)  # finite, and so large that float32 does not hold its mean
    assert solve(W, H, quantizer) is None
    (found,) = solve_together([W], H, quantizer, "gptq")
    codes, scales = rtn(W, quantizer)
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.scales, scales)
    assert (found.solver, found.damping, found.error, found.error_rtn) == ("rtn", None, None, None)


@pytest.mark.parametrize("solver", ["gptq", "rtn"])
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=IDS)
def test_an_indefinite_hessian_gives_weights_and_no_error(quantizer, solver):
    """No inputs have one: what it says of an error can be below zero."""
    W, _ = problem(8, 64, 10)
    H = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    H = H + H.T - 3 * torch.eye(64)
    assert torch.linalg.eigvalsh(H)[0] < -10
    assert float((W @ H * W).sum()) < 0
    (found,) = solve_together([W], H, quantizer, solver)
    assert (found.weight - W).abs().max() < 0.5 * W.abs().max()
    assert (found.solver, found.error, found.error_rtn) == (solver, None, None)
    assert found.damping is None if solver == "rtn" else found.damping > 0.01


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=IDS)
@pytest.mark.parametrize("used", [0, 1, 40])
def test_inputs_that_were_never_used_are_rounded_as_well_as_nearest_does(quantizer, used):
    """Another document may use them. Used inputs come first: a group may be dead in part."""
    W, H = problem(32, 64, 300)
    H[used:], H[:, used:] = 0, 0
    codes, scales, *_ = solve(W, H.float(), quantizer)
    dead = slice(used, 64)
    error = (W - dequantize(codes, scales, quantizer))[:, dead].square().mean()
    nearest = (W - dequantize(*rtn(W, quantizer), quantizer))[:, dead].square().mean()
    assert error <= nearest * 1.05


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("quantizer", [UniformQuantizer(4, 16), NF4Quantizer(16)], ids=["4", "nf4"])
def test_a_negative_scale_is_used_where_only_it_fits(quantizer, sign):
    """All 16 values of a quantizer, mirrored or not, are stored exactly: -8 .. 7 and the codebook are not symmetric."""
    values = torch.arange(16, dtype=torch.int8) - (8 if isinstance(quantizer, UniformQuantizer) else 0)
    W = sign * quantizer.values(values, torch.ones(()))[None]
    codes, scales, *_ = solve(W, torch.eye(16), quantizer)
    torch.testing.assert_close(dequantize(codes, scales, quantizer), W, rtol=1e-3, atol=1e-3)
    assert (scales.sign() == sign).all()


def test_both_errors_are_of_the_weight_that_makes_up_for_errors_of_inputs():
    W, H = problem(24, 64, 300)
    H, quantizer = H.float(), UniformQuantizer(4, 32)
    D = 0.2 * H.roll(1, 0)
    target = InputErrors(D.clone(), 300).corrected(W, factorise(H), 0.5)
    assert (target - W).abs().max() > 0.01
    (found,) = solve_together([W], H, quantizer, "gptq", errors=InputErrors(D, 300))
    energy = float((target @ H * target).sum())
    for weight, error in (
        (found.weight, found.error),
        (dequantize(*rtn(target, quantizer), quantizer), found.error_rtn),
    ):
        difference = target - weight
        assert error == pytest.approx(float((difference @ H * difference).sum()) / energy, rel=1e-4)
    (plain,) = solve_together([W], H, quantizer, "gptq")
    assert not torch.equal(found.codes, plain.codes)
