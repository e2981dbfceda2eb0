"""Token weights: how much the error of each calibration token counts in a Hessian.

Three things make tokens unequal in a decoder that reads documents (docs/quantization.md has the gain of each):

- EXAONE normalises the outputs of most linears, so an error counts relative to its token: tokens are scaled to equal
  norms. Image tokens enter the first layers many times larger than text and would dominate the Hessians.
- The words around a document are always the same, and their predictions are never used. In the last layer, nothing
  reads the outputs at image tokens either.
- Keys and values count as much as attention reads them, queries as much as their own token. Attention is a heuristic
  for keys and values: errors of tokens that are read together can cancel.
"""

from __future__ import annotations

import torch

PROMPT = 1 / 32


def last_layer_weights(length: int, answer: int) -> torch.Tensor:
    """Weigh the tokens of a document in the last layer: 1 where the answer is predicted, PROMPT elsewhere.

    The last `answer` tokens are predicted from the positions before them. Without an answer, all weigh 1. Returns
    [length] float32.
    """
    weights = torch.full((length,), PROMPT if answer else 1.0)
    weights[-answer - 1 : -1] = 1
    return weights


def token_weights(ids: torch.Tensor, answer: int, image_token: int | None) -> torch.Tensor:
    """Weigh the tokens ids [T] of a document in all layers but the last: image tokens weigh 1, too.

    Without an image, the prompt is the document, and all weigh 1. Returns [T] float32.
    """
    images = torch.zeros_like(ids, dtype=torch.bool) if image_token is None else ids == image_token
    return torch.where(images, 1.0, last_layer_weights(len(ids), answer)) if images.any() else torch.ones(len(ids))


def token_factors(X: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute what to multiply tokens X [T, K] by, for a mean square of `weights` [T]. A token of zeros stays zeros.

    Returns [T, 1].
    """
    return (weights / X.square().mean(-1).clamp(min=1e-30)).sqrt()[:, None]
