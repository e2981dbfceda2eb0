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
    rtn,
)

from .test_gptq import problem

QUANTIZERS = [UniformQuantizer(4, 16), UniformQuantizer(8, 32), NF4Quantizer(32)]
IDS = ["4 g16", "8 g32", "nf4 g32"]


def start(W, H, quantizer):
    """A GPTQ solution, and the Hessian as descent takes it."""
    factor = gptq.factorise(H)
    scales = fit_weighted(W, H.diagonal(), quantizer)
    codes = gptq.solve(W, factor, scales, quantizer)
    gptq.damp(H, factor.damping)
    return codes, scales


def error(W, H, codes, scales, quantizer):
    D = W - dequantize(codes, scales, quantizer)
    return (D @ H * D).sum(1)


def brute_force(w, H, q, scales, group_size, values):
    """One sweep over one row, in float64: `values` are all unit values of the quantizer, q the row's unit values."""

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
    quantizer = UniformQuantizer(4, 16)
    W, H = problem(3, 48, 200)
    W = W.double()
    codes, scales = start(W, H, quantizer)
    found_codes, found_scales = descend(W, H, codes, scales, quantizer, sweeps=1)
    values = np.arange(-8, 8)
    for n in range(3):
        begin = codes[n].double().numpy(), scales[n].double().numpy()
        q, s = brute_force(W[n].numpy(), H.numpy(), *begin, 16, values)
        np.testing.assert_array_equal(found_codes[n].numpy(), q)
        np.testing.assert_array_equal(found_scales[n].double().numpy(), s)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=IDS)
@pytest.mark.parametrize("seed", range(2))
def test_no_row_becomes_worse_and_all_together_become_better(quantizer, seed):
    W, H = problem(40, 128, 500, seed)
    H = H.float()
    codes, scales = start(W, H, quantizer)
    first = before = error(W, H, codes, scales, quantizer)
    for _ in range(3):
        codes, scales = descend(W, H, codes, scales, quantizer, sweeps=1)
        after = error(W, H, codes, scales, quantizer)
        assert (after <= before * (1 + 1e-4)).all()
        before = after
    assert before.sum() < 0.97 * first.sum()


def test_many_sweeps_end_where_no_single_code_can_be_improved():
    quantizer = NF4Quantizer(16)
    W, H = problem(4, 32, 100)
    W = W.double()
    codes, scales = descend(W, H, *start(W, H, quantizer), quantizer, sweeps=30)
    least = error(W, H, codes, scales, quantizer)
    for k in range(32):
        for code in range(len(NF4_VALUES)):
            changed = codes.clone()
            changed[:, k] = code
            assert (error(W, H, changed, scales, quantizer) >= least * (1 - 1e-6)).all()


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=IDS)
def test_weighted_scales_are_the_best_of_the_candidates(quantizer):
    W, H = problem(6, 64, 100)
    importance = H.diagonal().float()
    scales = fit_weighted(W, importance, quantizer)

    def loss(n, group, scale):
        columns = slice(group * quantizer.group_size, (group + 1) * quantizer.group_size)
        w = W[n, columns]
        return float(((w - quantizer.values(quantizer.round(w, scale), scale)) ** 2 * importance[columns]).sum())

    for n in range(6):
        for group in range(64 // quantizer.group_size):
            losses = [loss(n, group, candidate[n, group]) for candidate in quantizer.candidates(W)]
            assert loss(n, group, scales[n, group]) == pytest.approx(min(losses), rel=1e-5)
            assert loss(n, group, scales[n, group]) <= loss(n, group, quantizer.fit(W)[n, group])


def test_scales_do_not_depend_on_how_many_rows_there_are():
    W, H = problem(6, 64, 100)
    few = fit_weighted(W, H.diagonal().float(), QUANTIZERS[0])
    assert torch.equal(fit_weighted(W.repeat(1000, 1), H.diagonal().float(), QUANTIZERS[0]), few.repeat(1000, 1))


def test_nothing_to_gain_changes_nothing():
    """Weights that lie on the quantizer stay, and a row of zeros does not become NaN."""
    quantizer = UniformQuantizer(4, 32)
    W, H = problem(4, 64, 300)
    codes, scales = rtn(W, quantizer)
    codes[2] = 0
    W = dequantize(codes, scales, quantizer)
    gptq.damp(H, 0.01)
    found = descend(W, H.float(), codes, scales, quantizer)
    torch.testing.assert_close(dequantize(*found, quantizer), W, rtol=1e-3, atol=1e-6)
