"""Input errors: a linear makes up for a part of what the quantized layers in front of it did to its inputs.

Li, Yin, Wang, Zhu, Ren, Hu, Panda, "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", arXiv
2504.02692: the outputs to come close to are those of the unquantized model, ‖W X̃ − Ŵ X‖², where X [K, T] are the
inputs behind quantized layers and X̃ those behind unquantized ones. That is GPTQ of another weight, the least-squares
solution W X̃ Xᵀ (X Xᵀ)⁻¹ = W + W D H⁻¹, with H = 2 X Xᵀ and D = 2 (X̃ − X) Xᵀ.

All of it would fit the errors of the calibration tokens too closely, the more so the fewer tokens there are for K
inputs: SmolLM2 gets worse with it than without. So a share of D is used, which shrinks with K / T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from quantize.solver.gptq import STRIPE
from quantize.solver.quantizers import ROWS

if TYPE_CHECKING:
    from quantize.solver.gptq import Factor

SHRINKAGE = 8  # inputs per token at which a ninth of the share is left; chosen on SmolLM2


@dataclass
class InputErrors:
    """The errors of the inputs of linears, summed over calibration tokens."""

    D: torch.Tensor
    """2 (X̃ − X) Xᵀ [K, K]."""
    tokens: int = 0
    """Tokens T that were added."""

    def add(self, X: torch.Tensor, unquantized: torch.Tensor) -> None:
        """Add the inputs X [T, K] of T tokens, and what they are in the unquantized model [T, K]."""
        self.D.addmm_((unquantized - X).T, X, alpha=2.0)
        self.tokens += len(X)

    def corrected(self, W: torch.Tensor, factor: Factor, share: float) -> torch.Tensor:
        """Compute W + W (share' D) H⁻¹ [N, K] of W [N, K], with the factor of H; share' is the shrunk share."""
        share /= 1 + SHRINKAGE * len(self.D) / max(self.tokens, 1)
        result = torch.empty_like(W)
        for rows, corrected in zip(W.split(ROWS), result.split(ROWS), strict=True):
            errors, change = (rows @ self.D)[:, factor.order], torch.zeros_like(rows)
            for first in range(0, len(self.D), STRIPE):  # H⁻¹ = Vᵀ V, without the zeros of V
                V = factor.V[first : first + STRIPE, : first + STRIPE]
                change[:, : V.shape[1]].addmm_(errors[:, : V.shape[1]] @ V.T, V)
            corrected[:, factor.order] = rows[:, factor.order].add_(change, alpha=share)
        return result
