"""reference.npz: predictions of the unquantized model on evaluation documents, a baseline where it does not fit a GPU.

Weights that will be quantized are used as in the checkpoint, others rounded to `--dtype`. The file has, for D
documents, A answer tokens of all of them and the K most likely next tokens:

    document  [D] int32    place among `open_documents(source, split="evaluation", count=count, seed=seed)`
    digest    [D] str      digest of prompt, image and answer
    length    [D] int32    tokens, prompt and image tokens included
    answer    [D] int32    tokens, at the end, of the true answer and the end of the turn
    ids       [sum of length] int32
    top_ids   [A, K] int32, top_logits [A, K] float32, most likely first
    logsumexp [A] float64  over all logits: log p = logit - logsumexp; float32 is too coarse for a small divergence
    source    JSON text: source, count, seed; images: preprocessor_config.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quantize.calibration.samples import image_settings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from quantize.calibration.block_inputs import BlockInputs

REFERENCE = "reference.npz"
TOP = 128
ROWS = 64  # positions at a time: the logits of one take 0.6 MB with a vocabulary of 153600


@dataclass(frozen=True)
class Predictions:
    """Predictions at A positions of a document."""

    ids: NDArray[np.int32]
    """The K most likely tokens [A, K], most likely first."""
    logits: NDArray[np.float32]
    """Their logits [A, K]."""
    logsumexp: NDArray[np.float64]
    """Logarithm [A] of the sum of exponentials of all logits."""


def write_reference(folder: Path, evaluation: BlockInputs, head: nn.Module) -> None:
    """Write reference.npz. evaluation: its hidden states are those in front of the head, which has its weights."""
    documents, states = evaluation.documents, evaluation.states.read()
    device, predictions = evaluation.decoder.device, []
    for i, answer in enumerate(documents.answers):
        rows = states[i][-answer - 1 : -1].to(device)
        predictions += [_predictions(head(part)) for part in rows.split(ROWS)]
    settings = documents.settings
    source: dict[str, Any] = {"source": settings.documents, "count": settings.reference, "seed": settings.seed}
    if documents.grids:
        source["images"] = image_settings(settings.source)
    np.savez(
        folder / REFERENCE,
        document=np.array(documents.places, np.int32),
        digest=np.array(documents.digests, str),
        length=np.array([len(ids) for ids in documents.ids], np.int32),
        answer=np.array(documents.answers, np.int32),
        ids=torch.cat(documents.ids).numpy().astype(np.int32),
        top_ids=np.concatenate([prediction.ids for prediction in predictions]),
        top_logits=np.concatenate([prediction.logits for prediction in predictions]),
        logsumexp=np.concatenate([prediction.logsumexp for prediction in predictions]),
        source=np.array(json.dumps(source)),
    )


def _predictions(logits: torch.Tensor) -> Predictions:
    top = logits.topk(min(TOP, logits.shape[1]))
    return Predictions(
        top.indices.cpu().numpy().astype(np.int32),
        top.values.float().cpu().numpy(),
        logits.double().logsumexp(-1).cpu().numpy(),
    )
