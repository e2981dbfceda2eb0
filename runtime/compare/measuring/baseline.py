"""What candidates are compared with: an exported FP16 folder, or the `reference.npz` that quantize kept."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from calib_data.sources import open_documents
from console.errors import InputError
from runtime.compare.measuring.predictions import ModelOutput, Predictions, predict, token_ids
from runtime.decoding.forward import answer_parts
from runtime.inputs.images import ImageSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from calib_data.document import Document
    from runtime.model import Model

_BROKEN_FILE = (zipfile.BadZipFile, zlib.error, OSError, EOFError)
_ARRAYS = {
    **dict.fromkeys(("document", "length", "answer", "ids"), ("iu", 1)),
    "digest": ("U", 1),
    "top_ids": ("iu", 2),
    "top_logits": ("f", 2),
    "logsumexp": ("f", 1),
}
"""Kinds of dtype and number of axes of each array of a reference."""
_BAD_CONTENT = (ValueError, KeyError, IndexError, TypeError, AttributeError)


class Baseline(Protocol):
    """Something that candidates are compared with."""

    @property
    def path(self) -> Path:
        """Its folder or file."""

    def token_ids(self, document: Document) -> list[int]:
        """Tokens of a document, see `predictions.token_ids`."""

    def predict(self, document: Document, tokens: Sequence[int]) -> ModelOutput:
        """Predict the tokens of a document's true answer, end of turn included."""


@dataclass(frozen=True)
class FolderBaseline:
    """An exported folder, which is run on every document."""

    model: Model

    @property
    def path(self) -> Path:
        """The folder."""
        return self.model.folder

    def token_ids(self, document: Document) -> list[int]:
        """Tokenize with the folder's tokenizer."""
        return token_ids(self.model, document)

    def predict(self, document: Document, tokens: Sequence[int]) -> ModelOutput:
        """Run the model."""
        return predict(self.model, document, tokens)


class ReferenceBaseline:
    """Predictions that quantize kept of the unquantized model (`quantize.calibration.reference`); no answers.

    source: where the documents are now; None for where quantize read them. Raises InputError for a file that is not a
    reference, and for documents that are missing or have changed.
    """

    documents: list[Document]
    """The documents that have predictions, in order."""
    image_settings: ImageSettings | None
    """How images were prepared; None in references of older versions."""
    largest_id: int
    """Largest token id that is known."""

    def __init__(self, path: Path, source: str | None = None) -> None:
        self.path = path
        try:
            with np.load(path) as stored:
                content = {name: stored[name] for name in stored.files}
            if problem := _problem(content):
                raise ValueError(problem)
            origin = json.loads(str(content["source"]))
            count, seed = int(origin["count"]), int(origin["seed"])
            original, images = str(origin["source"]), origin.get("images")
            kept = list(zip(content["document"].tolist(), content["digest"].tolist(), strict=True))
            self._ids = np.split(content["ids"], np.cumsum(content["length"])[:-1])
            self._predictions = _split_predictions(content)
            self.largest_id = int(content["top_ids"].max())
        except (*_BROKEN_FILE, *_BAD_CONTENT) as error:
            raise InputError(f"{path}: not a reference written by quantize ({error})") from error
        self.image_settings = None if images is None else ImageSettings.from_config(images, path)
        try:
            drawn = open_documents(source or original, split="evaluation", count=count, seed=seed)
        except InputError as error:
            raise InputError(f"{path}: its documents: {error}; give --documents with where they are now") from error
        hint = f"--documents {source} is not {original}, which quantize read, or " if source else ""
        self.documents = [_matching(drawn, number, digest, f"{path}: ", hint) for number, digest in kept]
        self._places = {document.name: place for place, document in enumerate(self.documents)}

    def token_ids(self, document: Document) -> list[int]:
        """Look up the tokens that were kept."""
        kept: list[int] = self._ids[self._places[document.name]].tolist()
        return kept

    def predict(self, document: Document, tokens: Sequence[int]) -> ModelOutput:
        """Look up the predictions that were kept."""
        predictions = self._predictions[self._places[document.name]]
        return ModelOutput(None, (predictions[part] for part in answer_parts(len(tokens))))


def _problem(content: Mapping[str, NDArray[Any]]) -> str | None:
    """Say what rules the arrays of a reference out; None where they fit each other."""
    for name, (kinds, axes) in _ARRAYS.items():
        array = content[name]
        if array.dtype.kind not in kinds or array.ndim != axes:
            return f"{name} is {array.dtype} {list(array.shape)}"
    length, answer, top_logits, log_sums = (content[name] for name in ("length", "answer", "top_logits", "logsumexp"))
    rows = len(top_logits)
    if not len(content["document"]) == len(content["digest"]) == len(length) == len(answer) > 0:
        return "its documents do not have one digest, length and answer each"
    if length.min() < 1 or length.sum() != len(content["ids"]):
        return "ids are not as many as length says"
    if (
        answer.min() < 1
        or answer.sum() != rows
        or len(log_sums) != rows
        or content["top_ids"].shape != top_logits.shape
    ):
        return "predictions are not as many as answer says"
    if content["top_ids"].min(initial=0) < 0 or not np.isfinite(top_logits).all() or not np.isfinite(log_sums).all():
        return "it has negative token ids, or logits that are not finite"
    with np.errstate(over="ignore"):
        known = np.exp(top_logits - log_sums[:, None]).sum(-1)
    return None if (known < 1.001).all() else "its probabilities sum to more than 1"


def _split_predictions(content: dict[str, Any]) -> list[Predictions]:
    """Split the rows of a reference into the predictions of each document."""
    ends = np.cumsum(content["answer"])[:-1]
    arrays = content["top_logits"], content["logsumexp"], content["top_ids"].astype(np.int64)
    by_document = zip(*(np.split(array, ends) for array in arrays), strict=True)
    return [Predictions.from_top_k(*parts) for parts in by_document]


def _matching(drawn: Sequence[Document], number: int, digest: str, where: str, hint: str) -> Document:
    """The drawn document of this number. Raises InputError unless it has the digest that was kept."""
    document = drawn[number] if number < len(drawn) else None
    if document is not None and document.digest() == digest:
        return document
    what = f"{document.name} is not the document that was kept" if document else "a document that was kept is gone"
    raise InputError(
        f"{where}{what}: {hint}pages have been added, removed or changed since, or another version of Pillow "
        "renders them differently; run python -m quantize again"
    )
