"""How much the error of each calibration token counts: what its inputs are multiplied with before a Hessian sees them.

Three things make tokens unequal in a decoder that reads documents (docs/quantization.md has what each brings):

- EXAONE normalises what most of its linears put out: an error counts relative to its token, and tokens are brought to
  the same size. Image tokens enter the first layers many times larger than text and would be all that Hessians see.
- The words around a document are the same every time and their predictions are never used. In the last layer, nothing
  reads what becomes of the image either.
- Keys and values are worth what reads them, queries what their own token is worth. Attention is a rule of thumb for the
  former: errors of tokens that are read together can cancel.
"""

from __future__ import annotations

import torch

PROMPT = 1 / 32


def predicting(length: int, answer: int) -> torch.Tensor:
    """How much the tokens of a document count in its last layer, [length] float32: 1, or PROMPT for most.

    Those that count are the positions that predict the last `answer` tokens. Without an answer, all do.
    """
    counts = torch.full((length,), PROMPT if answer else 1.0)
    counts[-answer - 1 : -1] = 1
    return counts


def importance(ids: torch.Tensor, answer: int, image: int | None) -> torch.Tensor:
    """How much the tokens ids [T] of a document count in other layers: image tokens (of id `image`) as well.

    Where there are none, the prompt is the document, and all of it counts.
    """
    images = torch.zeros_like(ids, dtype=torch.bool) if image is None else ids == image
    return torch.where(images, 1.0, predicting(len(ids), answer)) if images.any() else torch.ones(len(ids))


def weighted(X: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """Scale tokens X [T, K], one a row, to a mean square of `importance` [T]; a token of zeros stays."""
    return X * (importance / X.square().mean(-1).clamp(min=1e-30)).sqrt()[:, None]
