"""Weights that make up for errors of their inputs, against least squares."""

import pytest
import torch

from quantize.solver import input_errors
from quantize.solver.gptq import add_inputs, factorise
from quantize.solver.input_errors import InputErrors

N, K, T = 5, 24, 400


def collected(X, unquantized, documents=4):
    """The Hessian and the errors of inputs [T, K], added a document at a time."""
    H, errors = torch.zeros(K, K, dtype=X.dtype), InputErrors(torch.zeros(K, K, dtype=X.dtype))
    for part, without_errors in zip(X.chunk(documents), unquantized.chunk(documents), strict=True):
        add_inputs(H, part)
        errors.add(part, without_errors)
    return H, errors


def problem():
    """A weight [N, K], correlated inputs [T, K], and the same inputs without errors, which depend on them."""
    generator = torch.Generator().manual_seed(3)
    W, mixed = (torch.randn(rows, K, generator=generator, dtype=torch.float64) for rows in (N, K))
    X = torch.randn(T, K, generator=generator, dtype=torch.float64) @ mixed
    noise = torch.randn(T, K, generator=generator, dtype=torch.float64)
    return W, X, X + 0.1 * X.roll(1, 1) + 0.05 * noise


def test_the_whole_share_is_the_least_squares_solution():
    """Of the outputs that the unquantized model has; the share would be whole with endless tokens."""
    W, X, unquantized = problem()
    H, errors = collected(X, unquantized)
    factor = factorise(H, damping=1e-12)
    whole = 1 + 8 * K / T
    expected = torch.linalg.lstsq(X, unquantized @ W.T).solution.T
    torch.testing.assert_close(errors.corrected(W, factor, whole), expected, rtol=1e-6, atol=1e-6)
    assert (expected - W).abs().max() > 0.1
    half = errors.corrected(W, factor, whole / 2)
    torch.testing.assert_close(half, (W + expected) / 2, rtol=1e-6, atol=1e-6)


def test_stripes_of_many_inputs_give_the_same(monkeypatch):
    W, X, unquantized = problem()
    H, errors = collected(X, unquantized)
    factor = factorise(H)
    whole = errors.corrected(W, factor, 0.5)
    monkeypatch.setattr(input_errors, "STRIPE", 7)
    monkeypatch.setattr(input_errors, "ROWS", 2)
    torch.testing.assert_close(errors.corrected(W, factor, 0.5), whole)


@pytest.mark.parametrize("tokens", [1, 24, 8 * 24, 10**9])
def test_the_share_shrinks_with_few_tokens(tokens):
    W, X, unquantized = problem()
    H, errors = collected(X, unquantized)
    factor = factorise(H)
    full = errors.corrected(W, factor, 1 + 8 * K / T) - W
    errors.tokens = tokens
    expected = W + full / (1 + 8 * K / tokens)
    torch.testing.assert_close(errors.corrected(W, factor, 1.0), expected, rtol=1e-6, atol=1e-6)


def test_without_errors_a_weight_stays_itself():
    W, X, _ = problem()
    H, errors = collected(X, X)
    assert torch.equal(errors.corrected(W, factorise(H), 0.5), W)
