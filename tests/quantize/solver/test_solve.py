"""From weights and a Hessian to codes and scales: the whole solver, and what it does where the Hessian says nothing."""

import pytest
import torch

from quantize.solver.quantizers import NF4Quantizer, UniformQuantizer, dequantize, round_to_nearest
from quantize.solver.solve import solve, solve_together

from .test_gptq import problem

GRIDS = [UniformQuantizer(4, 32), UniformQuantizer(8, 32), NF4Quantizer(32)]
IDS = ["4", "8", "nf4"]


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
def test_linears_that_share_inputs_are_solved_as_if_alone_and_reported_apart(grid):
    W, H = problem(24, 64, 300)
    H, before = H.float(), H.float()
    together = solve_together([W[:16], W[16:]], H, grid, "gptq")
    assert torch.equal(H, before)
    for rows, found in zip((slice(0, 16), slice(16, 24)), together, strict=True):
        (alone,) = solve_together([W[rows]], H, grid, "gptq")
        assert torch.equal(found.codes, alone.codes)
        assert torch.equal(found.scales, alone.scales)
        difference, rounded = W[rows] - found.weight, W[rows] - dequantize(*round_to_nearest(W[rows], grid), grid)
        energy = float((W[rows] @ H * W[rows]).sum())
        assert found.error == pytest.approx(float((difference @ H * difference).sum()) / energy, rel=1e-4)
        assert found.error_rtn == pytest.approx(float((rounded @ H * rounded).sum()) / energy, rel=1e-4)
        assert found.error < 0.7 * found.error_rtn
        assert found.damping == 0.01


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
def test_a_hessian_of_no_use_leaves_plain_rounding(grid):
    W, _ = problem(8, 64, 10)
    H = torch.full((64, 64), 3e38)  # finite, and so large that float32 does not hold its mean
    assert solve(W, H, grid) is None
    (found,) = solve_together([W], H, grid, "gptq")
    codes, scales = round_to_nearest(W, grid)
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.scales, scales)
    assert (found.solver, found.damping, found.error, found.error_rtn) == ("rtn", None, None, None)


@pytest.mark.parametrize("solver", ["gptq", "rtn"])
@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
def test_an_indefinite_hessian_gives_weights_and_no_error(grid, solver):
    """No inputs have one: what it says of an error can be below zero."""
    W, _ = problem(8, 64, 10)
    H = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    H = H + H.T - 3 * torch.eye(64)
    assert torch.linalg.eigvalsh(H)[0] < -10
    assert float((W @ H * W).sum()) < 0
    (found,) = solve_together([W], H, grid, solver)
    assert (found.weight - W).abs().max() < 0.5 * W.abs().max()
    assert (found.solver, found.error, found.error_rtn) == (solver, None, None)
    assert found.damping is None if solver == "rtn" else found.damping > 0.01


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
@pytest.mark.parametrize("used", [0, 1, 40])
def test_inputs_that_were_never_used_are_rounded_as_well_as_nearest_does(grid, used):
    """Another document may use them. Used inputs come first: a group may be dead in part."""
    W, H = problem(32, 64, 300)
    H[used:], H[:, used:] = 0, 0
    codes, scales, _ = solve(W, H.float(), grid)
    dead = slice(used, 64)
    error = (W - dequantize(codes, scales, grid))[:, dead].square().mean()
    nearest = (W - dequantize(*round_to_nearest(W, grid), grid))[:, dead].square().mean()
    assert error <= nearest * 1.05


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("grid", [UniformQuantizer(4, 16), NF4Quantizer(16)], ids=["4", "nf4"])
def test_a_negative_scale_is_used_where_only_it_fits(grid, sign):
    """All 16 values of a grid, mirrored or not, are stored exactly: -8 .. 7 and the codebook are not symmetric."""
    values = torch.arange(16, dtype=torch.int8) - (8 if isinstance(grid, UniformQuantizer) else 0)
    W = sign * grid.values(values, torch.ones(()))[None]
    codes, scales, _ = solve(W, torch.eye(16), grid)
    torch.testing.assert_close(dequantize(codes, scales, grid), W, rtol=1e-3, atol=1e-3)
    assert (scales.sign() == sign).all()
