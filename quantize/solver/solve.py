"""Linears that read the same inputs: from their weights and their Hessian to codes and scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from quantize.solver import gptq
from quantize.solver.coordinate_descent import SWEEPS, descend
from quantize.solver.quantizers import ROWS, Quantizer, by_rows, dequantize, fit_weighted, round_to_nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

# Raise it when the same settings give other bytes, because of the solver, the splits of documents, their prompts or
# their names: a run is not gone on with by another revision, nor is its result taken for the same.
REVISION = 3

Solver = Literal["gptq", "rtn"]
Tokens = Literal["as they are", "same size", "by importance", "by importance and attention"]


@dataclass(frozen=True)
class Recipe:
    """What goes beyond plain GPTQ: all of it, unless a measurement leaves something out.

    tokens: how they enter Hessians in a post-norm decoder (`quantize.solver.token_weights`). weighted_scales: chosen by
    how much their inputs are used. sweeps: of coordinate descent.
    """

    tokens: Tokens = "by importance and attention"
    weighted_scales: bool = True
    sweeps: int = SWEEPS


RECIPE = Recipe()


@dataclass(frozen=True)
class Solved:
    """A quantized linear: codes [N, K] int8, scales [N, K / group size].

    solver, error, error_rtn, damping: as in LinearReport.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    grid: Quantizer
    solver: Solver
    error: float | None
    error_rtn: float | None
    damping: float | None

    @property
    def weight(self) -> torch.Tensor:
        """The weight [N, K] (float32) that the codes stand for."""
        return dequantize(self.codes, self.scales, self.grid)


def solve_together(
    weights: Sequence[torch.Tensor], H: torch.Tensor, grid: Quantizer, solver: str, recipe: Recipe = RECIPE
) -> list[Solved]:
    """Quantize weights [N, K] (float32) that read the same inputs, of Hessian H [K, K]: one factorisation for all."""
    W = weights[0] if len(weights) == 1 else torch.cat(list(weights))  # no second copy of a head's 3 GB
    nearest = by_rows(round_to_nearest, W, grid)
    solution = None if solver == "rtn" else solve(W, H, grid, recipe)
    codes, scales, damping = solution or (*nearest, None)
    used: Solver = "gptq" if solution else "rtn"
    solved, first = [], 0
    for weight in weights:
        rows = slice(first, first := first + len(weight))
        energy = gptq.output_energy(weight, H)
        energies = [_error(weight, one[0][rows], one[1][rows], H, grid) for one in ((codes, scales), nearest)]
        # Of an indefinite H, which is what more damping tells, an energy can be anything.
        known = damping in (None, gptq.DAMPING) and all(0 <= one < math.inf for one in (energy, *energies))
        # Nothing in, nothing out: no error either.
        error, error_rtn = [one / (energy or 1.0) for one in energies] if known else (None, None)
        solved.append(Solved(codes[rows], scales[rows], grid, used, error, error_rtn, damping))
    return solved


def _error(W: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, H: torch.Tensor, grid: Quantizer) -> float:
    """‖(W − Ŵ)X‖², some rows at a time: the head of 33 B takes 3 GB in float32."""
    parts = zip(W.split(ROWS), codes.split(ROWS), scales.split(ROWS), strict=True)
    return sum(gptq.output_energy(w - dequantize(q, s, grid), H) for w, q, s in parts)


def solve(
    W: torch.Tensor, H: torch.Tensor, grid: Quantizer, recipe: Recipe = RECIPE
) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """Codes [N, K] and scales [N, K / group size] of W [N, K] for the Hessian H [K, K], and the damping that H needed.

    Scales that suit the inputs, then GPTQ, then coordinate descent. None where H is of no use: not finite, or of
    values so large that float32 does not hold its damped diagonal or its factor. H is given back as it was.
    """
    factor = gptq.factorise(H)
    if factor is None:
        return None
    damping, undamped = factor.damping, H.diagonal().clone()
    gptq.damp(H, damping)
    # At 8 bits GPTQ moves weights by more than a step, and clipping those costs more than a finer step saves.
    weighted = recipe.weighted_scales and grid.bits == 4
    scales = fit_weighted(W, H.diagonal(), grid) if weighted else grid.fit(W)
    codes = gptq.solve(W, factor, scales, grid)
    del factor  # as large as H, which is all that is needed from here on
    codes, scales = descend(W, H, codes, scales, grid, recipe.sweeps)
    H.diagonal().copy_(undamped)
    return codes, scales, damping
