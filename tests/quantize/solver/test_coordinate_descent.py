"""Coordinate descent against brute force: every code tried, every scale from the normal equation, one row at a time."""

import numpy as np
import pytest
import torch

from quantize.solver import gptq
from quantize.solver.coordinate_descent import descend
from quantize.solver.quantizers import (
    NF4_VALUES,
    NF4Quantizer,
    UniformQuantizer,
    dequantize,
    fit_weighted,
    round_to_nearest,
)

from .test_gptq import problem

GRIDS = [UniformQuantizer(4, 16), UniformQuantizer(8, 32), NF4Quantizer(32)]
IDS = ["4 g16", "8 g32", "nf4 g32"]


def start(W, H, grid):
    """A GPTQ solution, and the Hessian as descent takes it."""
    factor = gptq.factorise(H)
    scales = fit_weighted(W, H.diagonal(), grid)
    codes = gptq.solve(W, factor, scales, grid)
    gptq.damp(H, factor.damping)
    return codes, scales


def error(W, H, codes, scales, grid):
    D = W - dequantize(codes, scales, grid)
    return (D @ H * D).sum(1)


def brute_force(w, H, q, scales, group_size, values):
    """One sweep over one row, in float64: `values` are all unit values of the grid, q the row's unit values."""

    def loss(q, scales):
        d = w - q * np.repeat(scales, group_size)
        return d @ H @ d

    for group in range(len(scales)):
        columns = slice(group * group_size, (group + 1) * group_size)
        v = np.zeros_like(w)
        v[columns] = q[columns]
        rest = w - q * np.repeat(scales, group_size) + v * scales[group]
        wanted = scales.copy()
        wanted[group] = np.float16((v @ H @ rest) / (v @ H @ v))
        if loss(q, wanted) < loss(q, scales):
            scales = wanted
        for k in range(columns.start, columns.stop):
            tried = [np.concatenate([q[:k], [value], q[k + 1 :]]) for value in values]
            q = min(tried, key=lambda one: loss(one, scales))
    return q, scales


def test_a_sweep_is_brute_force():
    grid = UniformQuantizer(4, 16)
    W, H = problem(3, 48, 200)
    W = W.double()
    codes, scales = start(W, H, grid)
    found_codes, found_scales = descend(W, H, codes, scales, grid, sweeps=1)
    values = np.arange(-8, 8)
    for n in range(3):
        begin = codes[n].double().numpy(), scales[n].double().numpy()
        q, s = brute_force(W[n].numpy(), H.numpy(), *begin, 16, values)
        np.testing.assert_array_equal(found_codes[n].numpy(), q)
        np.testing.assert_array_equal(found_scales[n].double().numpy(), s)


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
@pytest.mark.parametrize("seed", range(2))
def test_no_row_becomes_worse_and_all_together_become_better(grid, seed):
    W, H = problem(40, 128, 500, seed)
    H = H.float()
    codes, scales = start(W, H, grid)
    first = before = error(W, H, codes, scales, grid)
    for _ in range(3):
        codes, scales = descend(W, H, codes, scales, grid, sweeps=1)
        after = error(W, H, codes, scales, grid)
        assert (after <= before * (1 + 1e-4)).all()
        before = after
    assert before.sum() < 0.97 * first.sum()


def test_many_sweeps_end_where_no_single_code_can_be_improved():
    grid = NF4Quantizer(16)
    W, H = problem(4, 32, 100)
    W = W.double()
    codes, scales = descend(W, H, *start(W, H, grid), grid, sweeps=30)
    least = error(W, H, codes, scales, grid)
    for k in range(32):
        for code in range(len(NF4_VALUES)):
            changed = codes.clone()
            changed[:, k] = code
            assert (error(W, H, changed, scales, grid) >= least * (1 - 1e-6)).all()


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
def test_weighted_scales_are_the_best_of_the_candidates(grid):
    W, H = problem(6, 64, 100)
    importance = H.diagonal().float()
    scales = fit_weighted(W, importance, grid)

    def loss(n, group, scale):
        columns = slice(group * grid.group_size, (group + 1) * grid.group_size)
        w = W[n, columns]
        return float(((w - grid.values(grid.round(w, scale), scale)) ** 2 * importance[columns]).sum())

    for n in range(6):
        for group in range(64 // grid.group_size):
            losses = [loss(n, group, candidate[n, group]) for candidate in grid.candidates(W)]
            assert loss(n, group, scales[n, group]) == pytest.approx(min(losses), rel=1e-5)
            assert loss(n, group, scales[n, group]) <= loss(n, group, grid.fit(W)[n, group])


def test_scales_do_not_depend_on_how_many_rows_there_are():
    W, H = problem(6, 64, 100)
    few = fit_weighted(W, H.diagonal().float(), GRIDS[0])
    assert torch.equal(fit_weighted(W.repeat(1000, 1), H.diagonal().float(), GRIDS[0]), few.repeat(1000, 1))


def test_nothing_to_gain_changes_nothing():
    """Weights that lie on the grid stay, and a row of zeros does not become NaN."""
    grid = UniformQuantizer(4, 32)
    W, H = problem(4, 64, 300)
    codes, scales = round_to_nearest(W, grid)
    codes[2] = 0
    W = dequantize(codes, scales, grid)
    gptq.damp(H, 0.01)
    found = descend(W, H.float(), codes, scales, grid)
    torch.testing.assert_close(dequantize(*found, grid), W, rtol=1e-3, atol=1e-6)
