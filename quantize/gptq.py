"""GPTQ: round a weight one input at a time, and let the inputs not yet rounded make up for the error.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023 (first as arXiv 2210.17323). Equation, step and algorithm numbers below are that paper's.

W [N, K] is a linear's weight, X [K, T] its inputs over all calibration tokens, H [K, K] = 2 X Xᵀ the Hessian of
‖W X − Ŵ X‖² (eq. 1). Rows of W do not know of each other, so linears that share their inputs are stacked and solved
as one. Pure tensors in, codes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from quantize.grids import Grid

DAMPING = 0.01  # λ of step 3, as a share of the mean diagonal
ROWS = 8192  # rows solved together, to bound memory: they do not know of each other
LAZY = 128  # columns updated together: B of algorithm 1


@dataclass(frozen=True)
class Factor:
    """What is needed of a Hessian to solve any weight that reads the same inputs.

    U [K, K]: upper triangular, Uᵀ U = H⁻¹ with rows and columns in `order`. order [K]: columns from the most to the
    least active ("act-order"), so that those that matter most are rounded while all others can still make up for it.
    damping: the share of the mean diagonal that was added to the diagonal; infinite where H was no help.
    """

    U: torch.Tensor
    order: torch.Tensor
    damping: float


def add_inputs(H: torch.Tensor, X: torch.Tensor) -> None:
    """Add the inputs X [T, K] of T tokens, one a row, to the Hessian H [K, K] in place."""
    H.addmm_(X.T, X, alpha=2.0)


def factorise(H: torch.Tensor, damping: float = DAMPING) -> Factor:
    """Order the columns of H [K, K] and factorise its damped inverse (step 3 of the paper), whatever H is.

    The paper inverts H and takes the inverse's Cholesky factor. With J reversing the order, J H J = L Lᵀ gives
    H = R Rᵀ for the upper triangular R = J L J, so U = R⁻¹: one factorisation less and no inverse that loses digits.
    A column that no token ever used (a dead one) has a zero row in H: with any diagonal it is plainly rounded and moves
    nothing else. (The paper's code sets its weights to zero; a document outside the calibration may need them.)
    A factorisation that fails is repeated with ten times the damping; more damping is closer to plain rounding.
    """
    diagonal = H.diagonal().clone()
    dead = ~(diagonal > 0)
    mean = diagonal[~dead].mean() if not dead.all() else torch.ones((), device=H.device)
    diagonal[dead] = mean
    order = torch.argsort(diagonal.masked_fill(dead, 0), descending=True, stable=True)
    for _ in range(8):
        A = H[order][:, order]
        A.diagonal().copy_(diagonal[order] + damping * mean)
        L, failed = torch.linalg.cholesky_ex(A.flip(0, 1))
        if not failed and bool(torch.isfinite(L.diagonal()).all()):
            eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
            U = torch.linalg.solve_triangular(L.flip(0, 1), eye, upper=True)
            if bool(torch.isfinite(U).all()):
                return Factor(U, order, damping)
        damping *= 10
    return Factor(torch.eye(len(H), dtype=H.dtype, device=H.device), order, float("inf"))


def solve(W: torch.Tensor, factor: Factor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [N, K] and scales [N, K / group_size] of W [N, K] (float32) by algorithm 1.

    Groups are the grid's, of neighbouring inputs, and their scales are fitted to W before anything is permuted
    ("static groups"): the result needs no index of groups at run time.
    """
    parts = [_solve_rows(rows, factor, grid) for rows in W.split(ROWS)]
    return torch.cat([codes for codes, _ in parts]), torch.cat([scales for _, scales in parts])


def _solve_rows(W: torch.Tensor, factor: Factor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    U, order = factor.U, factor.order
    scales = grid.fit(W)
    # Transposed, so that a column of W is a row in memory.
    T = W.T[order].clone()
    scale = scales.T[order // grid.group_size]
    codes = torch.empty(T.shape, dtype=torch.int8, device=W.device)
    errors = torch.empty(min(LAZY, len(T)), T.shape[1], dtype=T.dtype, device=W.device)
    for first in range(0, len(T), LAZY):
        last = min(first + LAZY, len(T))
        for i in range(first, last):
            codes[i] = grid.round(T[i], scale[i])
            error = (T[i] - grid.values(codes[i], scale[i])) / U[i, i]  # eq. 2, left, by the rows of U (step 3)
            T[i:last] -= torch.outer(U[i, i:last], error)  # eq. 2, right: inside the block
            errors[i - first] = error
        T[last:] -= U[first:last, last:].T @ errors[: last - first]  # eq. 4: the others, once a block
    result = torch.empty_like(codes)
    result[order] = codes
    return result.T.contiguous(), scales


def output_energy(D: torch.Tensor, H: torch.Tensor) -> float:
    """Compute the squared norm ‖D X‖² = tr(D H Dᵀ) / 2 of what D [N, K] makes of all calibration inputs."""
    return sum(float((rows @ H).mul_(rows).sum(dtype=torch.float64)) for rows in D.split(ROWS)) / 2
