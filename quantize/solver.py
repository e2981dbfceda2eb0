"""Linears that read the same inputs: from their weights and their Hessian to codes and scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from quantize import gptq
from quantize.descent import SWEEPS, descend
from quantize.grids import ROWS, Grid, by_rows, dequantize, fit_weighted, round_to_nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

Tokens = Literal["as they are", "same size", "by importance", "by importance and attention"]


@dataclass(frozen=True)
class Recipe:
    """What goes beyond plain GPTQ: all of it, unless a measurement leaves something out.

    tokens: how they enter Hessians in a post-norm decoder (`quantize.importance`). weighted_scales: chosen by how much
    their inputs are used. sweeps: of coordinate descent.
    """

    tokens: Tokens = "by importance and attention"
    weighted_scales: bool = True
    sweeps: int = SWEEPS


RECIPE = Recipe()


@dataclass(frozen=True)
class Solved:
    """A quantized linear: codes [N, K] int8, scales [N, K / group size].

    error, error_rtn: ‖(W − Ŵ)X‖² / ‖WX‖² as solved, and for round-to-nearest. damping: as in LinearReport.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    grid: Grid
    error: float
    error_rtn: float
    damping: float | None

    @property
    def weight(self) -> torch.Tensor:
        """The weight [N, K] (float32) that the codes stand for."""
        return dequantize(self.codes, self.scales, self.grid)


def solve_together(
    weights: Sequence[torch.Tensor], H: torch.Tensor, grid: Grid, solver: str, recipe: Recipe = RECIPE
) -> list[Solved]:
    """Quantize weights [N, K] (float32) that read the same inputs, of Hessian H [K, K]: one factorisation for all."""
    W = weights[0] if len(weights) == 1 else torch.cat(list(weights))  # no second copy of a head's 3 GB
    nearest = by_rows(round_to_nearest, W, grid)
    codes, scales, damping = (None if solver == "rtn" else solve(W, H, grid, recipe)) or (*nearest, None)
    solved, first = [], 0
    for weight in weights:
        rows = slice(first, first := first + len(weight))
        energy = gptq.output_energy(weight, H) or 1.0  # nothing in, nothing out: no error either
        errors = [_error(weight, one[0][rows], one[1][rows], H, grid) / energy for one in ((codes, scales), nearest)]
        solved.append(Solved(codes[rows], scales[rows], grid, errors[0], errors[1], damping))
    return solved


def _error(W: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, H: torch.Tensor, grid: Grid) -> float:
    """‖(W − Ŵ)X‖², some rows at a time: the head of 33 B takes 3 GB in float32."""
    parts = zip(W.split(ROWS), codes.split(ROWS), scales.split(ROWS), strict=True)
    return sum(gptq.output_energy(w - dequantize(q, s, grid), H) for w, q, s in parts)


def solve(
    W: torch.Tensor, H: torch.Tensor, grid: Grid, recipe: Recipe = RECIPE
) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """Codes [N, K] and scales [N, K / group size] of W [N, K] for the Hessian H [K, K], and the damping that H needed.

    Scales that suit the inputs, then GPTQ, then coordinate descent. None where H is of no use. H is given back as it
    was.
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
