"""What candidates are compared with: an exported FP16 folder, or the `reference.npz` that quantize kept of it."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from calib_data.sources import open_documents
from console.errors import InputError
from runtime.compare.measure import Read, read, token_ids
from runtime.compare.predictions import Predictions
from runtime.generate import answer_parts
from runtime.inputs.images import ImageSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from calib_data.document import Document
    from runtime.generate import Model


_BROKEN = (zipfile.BadZipFile, zlib.error)


class Baseline(Protocol):
    """Something that candidates are compared with."""

    @property
    def path(self) -> Path:
        """Of its folder or file."""

    def token_ids(self, document: Document) -> list[int]:
        """Tokens of a document, as `measure.token_ids` gives them."""

    def read(self, document: Document, tokens: Sequence[int]) -> Read:
        """Read a document and predict the tokens of its true answer, its end included."""


@dataclass(frozen=True)
class FolderBaseline:
    """An exported folder, run on every document."""

    model: Model

    @property
    def path(self) -> Path:
        """Of the folder."""
        return self.model.folder

    def token_ids(self, document: Document) -> list[int]:
        """Those of the model."""
        return token_ids(self.model, document)

    def read(self, document: Document, tokens: Sequence[int]) -> Read:
        """Answer it and predict."""
        return read(self.model, document, tokens)


class ReferenceBaseline:
    """Predictions that quantize kept, as `quantize.calibration.reference` lays them out; there are no answers.

    documents: those that were kept, in order. image_settings: how their pictures were prepared; None for a reference of
    before this was kept. source: where the documents lie now; None for where quantize found them. Raises InputError for
    a file that is not one, and where the documents are not to be had any more, or are others now.
    """

    def __init__(self, path: Path, source: str | None = None) -> None:
        self.path = path
        try:
            with np.load(path) as stored:
                content = {name: stored[name] for name in stored.files}
            kept_of = json.loads(str(content["source"]))
            count, seed = int(kept_of["count"]), int(kept_of["seed"])
            where, images = source or str(kept_of["source"]), kept_of.get("images")
            kept = list(zip(content["document"].tolist(), content["digest"].tolist(), strict=True))
            self._ids = np.split(content["ids"], np.cumsum(content["length"])[:-1])
            ends = np.cumsum(content["answer"])[:-1]
            top_ids = content["top_ids"].astype(np.int64)
            parts = (np.split(one, ends) for one in (content["top_logits"], content["logsumexp"], top_ids))
            self._predictions = [Predictions.of_likeliest(*one) for one in zip(*parts, strict=True)]
        except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, *_BROKEN) as error:
            raise InputError(f"{path}: is not a reference that quantize wrote ({error})") from error
        self.image_settings = None if images is None else ImageSettings.from_config(images, path)
        try:
            drawn = open_documents(where, split="evaluation", count=count, seed=seed)
        except InputError as error:
            raise InputError(f"{path}: its documents: {error}; give --documents with where they are now") from error
        for place, digest in kept:
            found = drawn[place] if place < len(drawn) else None
            if found is None or found.digest() != digest:
                what = f"{found.name} is not the document that was kept" if found else "one that was kept is gone"
                here = f"--documents {source} is not {kept_of['source']}, which quantize read, or " if source else ""
                raise InputError(
                    f"{path}: {what}: {here}pages have been added, removed or changed since, or another version of "
                    "Pillow draws them otherwise; run python -m quantize again"
                )
        self.documents = [drawn[place] for place, _ in kept]
        self._places = {document.name: place for place, document in enumerate(self.documents)}

    def token_ids(self, document: Document) -> list[int]:
        """Those that were kept."""
        kept: list[int] = self._ids[self._places[document.name]].tolist()
        return kept

    def read(self, document: Document, tokens: Sequence[int]) -> Read:
        """Look up what was kept."""
        predictions = self._predictions[self._places[document.name]]
        return Read(None, (predictions[part] for part in answer_parts(len(tokens))))
