"""What the unquantized model predicts on evaluation documents: a baseline for cards that cannot hold it.

Weights that will be quantized are used as the checkpoint has them, others as `--dtype` rounds them.

reference.npz, for D documents, A answer tokens of all of them and the K likeliest next tokens:

    document  [D] int32    its place among `open_documents(source, split="evaluation", count=count, seed=seed)`
    digest    [D] str      of all that it was
    length    [D] int32    its tokens, prompt and image tokens included
    answer    [D] int32    how many of them, at the end, are the true answer and the end of the turn
    ids       [sum of length] int32
    top_ids   [A, K] int32, top_logits [A, K] float32, from the likeliest down
    logsumexp [A] float64  of all logits: log p = logit - logsumexp; float32 would be as coarse as a small divergence
    source    JSON text: source, count, seed; images: how pictures were prepared, as preprocessor_config.json says it
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quantize.calibration.samples import image_settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from quantize.calibration.documents import Documents

REFERENCE = "reference.npz"
TOP = 128
ROWS = 64  # positions at a time: logits over a vocabulary of 153600 take 0.6 MB each


@dataclass(frozen=True)
class Predicted:
    """What is kept of one document: the largest logits [A, K] float32, their ids int32, and logsumexp [A] float64."""

    ids: NDArray[np.int32]
    logits: NDArray[np.float32]
    logsumexp: NDArray[np.float64]


def likeliest(logits: torch.Tensor) -> Predicted:
    """Keep of logits [A, V] the TOP largest and the log of the sum of exponentials of all."""
    top = logits.topk(min(TOP, logits.shape[1]))
    return Predicted(
        top.indices.cpu().numpy().astype(np.int32),
        top.values.float().cpu().numpy(),
        logits.double().logsumexp(-1).cpu().numpy(),
    )


def write_reference(folder: Path, documents: Documents, predicted: Sequence[Predicted], source: dict[str, Any]) -> None:
    """Write reference.npz of what was predicted for each document. source: where documents are from, of which draw."""
    if documents.vision is not None:
        source = {**source, "images": image_settings(documents.settings.model)}
    np.savez(
        folder / REFERENCE,
        document=np.array(documents.places, np.int32),
        digest=np.array(documents.digests, str),
        length=np.array([len(ids) for ids in documents.ids], np.int32),
        answer=np.array(documents.answers, np.int32),
        ids=torch.cat(documents.ids).numpy().astype(np.int32),
        top_ids=np.concatenate([one.ids for one in predicted]),
        top_logits=np.concatenate([one.logits for one in predicted]),
        logsumexp=np.concatenate([one.logsumexp for one in predicted]),
        source=np.array(json.dumps(source)),
    )
