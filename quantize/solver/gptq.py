"""GPTQ: round a weight one input at a time; the inputs not yet rounded compensate for the error.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023 (first as arXiv 2210.17323). Equation, step and algorithm numbers below are that paper's.

W [N, K] is a linear's weight, X [K, T] its inputs over all calibration tokens, H [K, K] = 2 X Xᵀ the Hessian of
‖W X − Ŵ X‖² (eq. 1). Rows of W are independent, so linears that share their inputs are stacked and solved as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from quantize.solver.quantizers import ROWS

if TYPE_CHECKING:
    from quantize.solver.quantizers import Quantizer

DAMPING = 0.01  # λ of step 3, relative to the mean diagonal
LAZY = 128  # columns updated together: B of algorithm 1
LEAF = 256  # size of a triangle that is inverted at once
STRIPE = 1024  # columns of a large product computed at once, to bound memory


@dataclass(frozen=True)
class Factor:
    """A factorised Hessian: solves any weight that reads the same inputs."""

    V: torch.Tensor
    """Lower triangular [K, K] with Vᵀ V = H⁻¹, rows and columns in `order`."""
    order: torch.Tensor
    """Columns [K] from the least to the most active. They are solved from the last to the first ("act-order"): those
    that matter most are rounded while all others can still compensate."""
    damping: float
    """Added to the diagonal, relative to its mean."""


def add_inputs(H: torch.Tensor, X: torch.Tensor) -> None:
    """Add the inputs X [T, K] of T tokens to the Hessian H [K, K] in place."""
    H.addmm_(X.T, X, alpha=2.0)


def factorise(H: torch.Tensor, damping: float = DAMPING) -> Factor | None:
    """Order the columns of H [K, K] and factorise its damped inverse (step 3). None where that fails.

    The paper inverts H and takes the upper Cholesky factor of the inverse. Solving from the last column to the first,
    the inverse of the plain lower factor serves: with H = L Lᵀ and V = L⁻¹, Vᵀ V = H⁻¹, and a leading block of V is the
    factor of the remaining H. That saves a factorisation and the digits that an inverse loses. V replaces L, so only
    one matrix of this size is needed next to H: at 33 B each takes 3 GB for the down projection.

    A dead column, which no token ever used, has a zero row in H: with any diagonal it is quantized by RTN and moves
    nothing else. (The paper's code sets its weights to zero; a document outside the calibration set may need them.)

    A factorisation that fails is repeated with ten times the damping; more damping is closer to RTN. An exact H is
    never indefinite, but its sums in float32 can be: damping above the first shows that they are.
    """
    diagonal, mean = _without_zeros(H)
    order = torch.argsort(H.diagonal().clamp(min=0), stable=True)
    for _ in range(8):
        A = _permuted(H, order)
        A.diagonal().copy_(diagonal[order] + damping * mean)
        L = A.mT  # symmetric, and in the layout that LAPACK works on in place
        failed = torch.empty((), dtype=torch.int32, device=H.device)
        torch.linalg.cholesky_ex(L, out=(L, failed))
        if not failed and bool(torch.isfinite(L.diagonal()).all()):
            _invert(L)
            if all(math.isfinite(bound) for bound in L.aminmax()):
                return Factor(L, order, damping)
        damping *= 10
    return None


def damp(H: torch.Tensor, damping: float) -> None:
    """Add to the diagonal of H, in place, what `factorise` added."""
    diagonal, mean = _without_zeros(H)
    H.diagonal().copy_(diagonal + damping * mean)


def _without_zeros(H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy the diagonal of H, dead columns set to the mean of the others. Returns it and that mean."""
    diagonal = H.diagonal().clone()
    dead = ~(diagonal > 0)
    mean = diagonal[~dead].mean() if not dead.all() else torch.ones((), dtype=H.dtype, device=H.device)
    diagonal[dead] = mean
    return diagonal, mean


def _permuted(H: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Permute rows and columns of H, a stripe at a time so that no second copy is in memory."""
    A = torch.empty_like(H)
    for first in range(0, len(H), STRIPE):
        rows = order[first : first + STRIPE]
        A[first : first + len(rows)] = H[rows][:, order]
    return A


def _invert(L: torch.Tensor) -> None:
    """Turn a lower triangular L [K, K] into its inverse, in place.

    By halves: with diagonal blocks A and D and B below A, the inverse has −D⁻¹ B A⁻¹ in the place of B. That is a third
    of the work of solving L V = I, whose zeros no library skips.
    """
    if len(L) <= LEAF:
        identity = torch.eye(len(L), dtype=L.dtype, device=L.device)
        L.copy_(torch.linalg.solve_triangular(L, identity, upper=False))
        return
    half = len(L) // 2
    A, B, D = L[:half, :half], L[half:, :half], L[half:, half:]
    for part in B.split(STRIPE, 1):
        part.copy_(torch.linalg.solve_triangular(D, part, upper=False))
    for part in B.split(STRIPE):
        part.copy_(torch.linalg.solve_triangular(A, part, upper=False, left=False).neg_())
    _invert(A)
    _invert(D)


def solve(W: torch.Tensor, factor: Factor, scales: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """Choose codes [N, K] of W [N, K] (float32) for scales [N, K / group_size], by algorithm 1.

    Groups are consecutive inputs, and their scales are chosen before columns are permuted ("static groups"): the result
    needs no index of groups at run time.
    """
    parts = zip(W.split(ROWS), scales.split(ROWS), strict=True)
    return torch.cat([_solve_rows(rows, factor, scale, quantizer) for rows, scale in parts])


def _solve_rows(W: torch.Tensor, factor: Factor, scales: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    V, order = factor.V, factor.order
    # Transposed, so that a column of W is a row in memory.
    T = W.T[order]
    scale = scales.T[order // quantizer.group_size]
    codes = torch.empty(T.shape, dtype=torch.int8, device=W.device)
    for last in range(len(T), 0, -LAZY):
        first = max(last - LAZY, 0)
        errors = torch.empty(last - first, T.shape[1], dtype=T.dtype, device=W.device)
        for i in range(last - 1, first - 1, -1):
            codes[i] = quantizer.round(T[i], scale[i])
            error = (T[i] - quantizer.values(codes[i], scale[i])) / V[i, i]  # eq. 2, left, by the rows of V (step 3)
            T[first : i + 1].addr_(V[i, first : i + 1], error, alpha=-1)  # eq. 2, right: inside the block
            errors[i - first] = error
        T[:first].addmm_(V[first:last, :first].T, errors, alpha=-1)  # eq. 4: all others, once per block
    result = torch.empty_like(codes)
    result[order] = codes
    return result.T.contiguous()


def output_energy(D: torch.Tensor, H: torch.Tensor) -> float:
    """Compute the squared norm ‖D X‖² = tr(D H Dᵀ) / 2 of the outputs of D [N, K] on all calibration inputs."""
    energy = 0.0
    for rows in D.split(ROWS):
        for first in range(0, len(H), STRIPE):  # H is symmetric: blocks below its diagonal count twice
            columns, below = slice(first, first + STRIPE), slice(first + STRIPE, None)
            part = torch.addmm(rows[:, below] @ H[below, columns], rows[:, columns], H[columns, columns], beta=2)
            energy += float(part.mul_(rows[:, columns]).sum(dtype=torch.float64))
    return energy / 2
