"""How much the error of each calibration token counts: what its inputs are multiplied with before a Hessian sees them.

Three things make tokens unequal in a decoder that reads documents (docs/quantization.md has what each brings):

- EXAONE normalises what its linears put out, so an error counts relative to its token, and tokens are brought to the
  same size. Image tokens enter the first layers many times larger than text and would be all that Hessians see.
- The words around a document are the same every time and their predictions are never used. In the last layer, nothing
  reads what becomes of the image either.
- Keys and values are worth what reads them, queries what their own token is worth.
"""

from __future__ import annotations

import torch

PROMPT = 1 / 32


def predicting(length: int, answer: int) -> torch.Tensor:
    """How much the tokens of a document count in its last layer, [length] float32: 1, or PROMPT for most.

    Those that count are the positions that predict the last `answer` tokens; where there is no answer, the position
    that would begin it.
    """
    counts = torch.full((length,), PROMPT)
    counts[slice(-answer - 1, -1) if answer else slice(-1, None)] = 1
    return counts


def importance(ids: torch.Tensor, answer: int, image: int | None) -> torch.Tensor:
    """How much the tokens ids [T] of a document count in other layers: image tokens (of id `image`) as well."""
    counts = predicting(len(ids), answer)
    if image is not None:
        counts[ids == image] = 1
    return counts


def weighted(X: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """Scale tokens X [T, K], one a row, to a mean square of `importance` [T]; a token of zeros stays."""
    return X * (importance / X.square().mean(-1).clamp(min=1e-30)).sqrt()[:, None]
