"""Quantize linears that read the same inputs: from their weights and one Hessian to codes and scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from quantize.solver import gptq
from quantize.solver.coordinate_descent import SWEEPS, descend
from quantize.solver.quantizers import ROWS, Quantizer, dequantize, fit_weighted, rtn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quantize.solver.input_errors import InputErrors

Solver = Literal["gptq", "rtn"]
TokenWeighting = Literal["none", "equal norms", "weights", "weights and attention"]


@dataclass(frozen=True)
class Recipe:
    """Additions to plain GPTQ. The defaults are what `quantize` uses; `bench.ablation` leaves some out."""

    tokens: TokenWeighting = "weights and attention"
    """Weighting of tokens in the Hessians of a post-norm decoder (`quantize.solver.token_weights`)."""
    weighted_scales: bool = True
    """Whether the diagonal of the Hessian weighs the errors of a group when its scale is chosen."""
    sweeps: int = SWEEPS
    """Sweeps of coordinate descent."""
    input_errors: float = 0.5
    """Share of the errors of its inputs that a decoder's linear of 4 bits makes up for
    (`quantize.solver.input_errors`)."""


RECIPE = Recipe()


@dataclass(frozen=True)
class Solved:
    """A quantized linear."""

    codes: torch.Tensor
    """[N, K] int8."""
    scales: torch.Tensor
    """[N, K / group size]."""
    quantizer: Quantizer
    """What codes and scales mean."""
    solver: Solver
    """As in `LinearReport`, like the fields below."""
    error: float | None
    """‖(W − Ŵ)X‖² / ‖WX‖², where W is the weight to come close to."""
    error_rtn: float | None
    """The same with W rounded to nearest."""
    damping: float | None
    """Of the Hessian; None where it was not used."""

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weight [N, K], float32."""
        return dequantize(self.codes, self.scales, self.quantizer)


class Solution(NamedTuple):
    """What the solver chose for a weight."""

    codes: torch.Tensor
    """[N, K] int8."""
    scales: torch.Tensor
    """[N, K / group size]."""
    damping: float
    """Damping of the Hessian."""
    target: torch.Tensor
    """The weight [N, K] to come close to: the original one, or what makes up for errors of its inputs, too."""


def solve_together(
    weights: Sequence[torch.Tensor],
    H: torch.Tensor,
    quantizer: Quantizer,
    solver: str,
    recipe: Recipe = RECIPE,
    errors: InputErrors | None = None,
) -> list[Solved]:
    """Quantize weights [N, K] (float32) that read the same inputs, with one factorisation of their Hessian H [K, K].

    errors: of these inputs, where the weights are to make up for some of them.
    """
    W = weights[0] if len(weights) == 1 else torch.cat(list(weights))  # no second copy of a head's 3 GB
    solution = None if solver == "rtn" else solve(W, H, quantizer, recipe, errors)
    target, damping = (solution.target, solution.damping) if solution else (W, None)
    rounded = rtn(target, quantizer)
    codes, scales = (solution.codes, solution.scales) if solution else rounded
    used: Solver = "gptq" if solution else "rtn"
    solved, first = [], 0
    for weight in weights:
        rows = slice(first, first := first + len(weight))
        energy = gptq.output_energy(target[rows], H)
        error = _error(target[rows], codes[rows], scales[rows], H, quantizer)
        error_rtn = _error(target[rows], rounded[0][rows], rounded[1][rows], H, quantizer)
        # More damping shows that H is indefinite: then an energy can be anything.
        known = damping in (None, gptq.DAMPING) and all(0 <= value < math.inf for value in (energy, error, error_rtn))
        # Without any input there is no output, and no error either.
        total = energy or 1.0
        relative, relative_rtn = (error / total, error_rtn / total) if known else (None, None)
        solved.append(Solved(codes[rows], scales[rows], quantizer, used, relative, relative_rtn, damping))
    return solved


def _error(W: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, H: torch.Tensor, quantizer: Quantizer) -> float:
    """Compute ‖(W − Ŵ)X‖², some rows at a time: the head of 33 B takes 3 GB in float32."""
    parts = zip(W.split(ROWS), codes.split(ROWS), scales.split(ROWS), strict=True)
    return sum(gptq.output_energy(w - dequantize(q, s, quantizer), H) for w, q, s in parts)


def solve(
    W: torch.Tensor,
    H: torch.Tensor,
    quantizer: Quantizer,
    recipe: Recipe = RECIPE,
    errors: InputErrors | None = None,
) -> Solution | None:
    """Solve W [N, K] for the Hessian H [K, K]: input errors, weighted scales, GPTQ, coordinate descent.

    Returns None where H has no factor: it is not finite, or its values are too large for float32. H is unchanged
    afterwards, and errors are emptied.
    """
    factor = gptq.factorise(H)
    if factor is None:
        return None
    damping, undamped = factor.damping, H.diagonal().clone()
    gptq.damp(H, damping)
    if errors is not None:
        W = errors.corrected(W, factor, recipe.input_errors)
        errors.D = errors.D.new_empty(0)  # as large as H, and not needed any more
    # At 8 bits GPTQ moves weights by more than a step: clipping those costs more than a finer step saves.
    weighted = recipe.weighted_scales and quantizer.bits == 4
    scales = fit_weighted(W, H.diagonal(), quantizer) if weighted else quantizer.fit(W)
    codes = gptq.solve(W, factor, scales, quantizer)
    del factor  # as large as H, and not needed any more
    codes, scales = descend(W, H, codes, scales, quantizer, recipe.sweeps)
    H.diagonal().copy_(undamped)
    return Solution(codes, scales, damping, W)
