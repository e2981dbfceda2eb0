"""Coordinate descent from a GPTQ solution: set one code, or one scale, at a time to its best value given all others.

Behdin, Acharya, Gupta, Song, Zhu, Keerthi, Mazumder, "QuantEase: Optimization-based Quantization for Language Models",
arXiv 2309.01885, section 3: cyclic coordinate descent on ‖W X − Ŵ X‖² over the codes. Here the scale of a group is a
coordinate too; its best value has a closed form. No step raises the error for the damped Hessian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from quantize.solver.quantizers import ROWS

if TYPE_CHECKING:
    from quantize.solver.quantizers import Quantizer

SWEEPS = 2  # passes over all columns; a third gains next to nothing


def descend(
    W: torch.Tensor,
    H: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    quantizer: Quantizer,
    sweeps: int = SWEEPS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Improve codes [N, K] and scales [N, K / group_size] of W [N, K] (float32), for the damped Hessian H [K, K]."""
    rows = zip(W.split(ROWS), codes.split(ROWS), scales.split(ROWS), strict=True)
    parts = [_descend_rows(*part, H, quantizer, sweeps) for part in rows]
    return torch.cat([codes for codes, _ in parts]), torch.cat([scales for _, scales in parts])


def _descend_rows(
    W: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, H: torch.Tensor, quantizer: Quantizer, sweeps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    # Transposed, so that a column of W is a row in memory. G is half the gradient, with the sign of descent.
    C, S = codes.T.contiguous(), scales.T.contiguous()
    Q = quantizer.values(C, S.repeat_interleave(quantizer.group_size, 0)).to(W.dtype)
    G = H @ (W.T - Q)
    for sweep in range(sweeps):
        for group in range(len(S)):
            columns = slice(group * quantizer.group_size, (group + 1) * quantizer.group_size)
            before = Q[columns].clone()
            part = (Q[columns], C[columns], G[columns].clone(), H[columns, columns])
            S[group] = _rescale(*part, S[group], quantizer)
            _recode(*part, S[group], quantizer)
            rest = slice(columns.stop if sweep == sweeps - 1 else 0, None)  # the last sweep does not come back
            G[rest].addmm_(H[rest, columns], Q[columns] - before, alpha=-1)
    return C.T.contiguous(), S.T.contiguous()


def _rescale(
    Q: torch.Tensor, C: torch.Tensor, G: torch.Tensor, H: torch.Tensor, scale: torch.Tensor, quantizer: Quantizer
) -> torch.Tensor:
    """Find the best scale [N] of one group for its codes; updates its values Q and gradient G, both [group, N].

    With ŵ = s v, the error of a change d of s is −2 d vᵀG + d² vᵀH v.
    """
    v = quantizer.values(C, torch.ones_like(scale)).to(Q.dtype)
    slope, curvature = (v * G).sum(0), (v * (H @ v)).sum(0)
    best = quantizer.round_scales(scale + slope / curvature.clamp(min=torch.finfo(Q.dtype).tiny))
    change = best.to(Q.dtype) - scale.to(Q.dtype)
    better = change * (change * curvature - 2 * slope) < 0
    scale = torch.where(better, best, scale)
    values = v * scale
    G -= H @ (values - Q)
    Q.copy_(values)
    return scale


def _recode(
    Q: torch.Tensor, C: torch.Tensor, G: torch.Tensor, H: torch.Tensor, scale: torch.Tensor, quantizer: Quantizer
) -> None:
    """Set each code of one group to the best value given all others; updates C, Q and G, all [group, N]."""
    for i in range(len(Q)):
        C[i] = quantizer.round(Q[i] + G[i] / H[i, i], scale)
        value = quantizer.values(C[i], scale)
        G.addr_(H[:, i], value - Q[i], alpha=-1)
        Q[i] = value
