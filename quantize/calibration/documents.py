"""The calibration and the evaluation documents of a run: their tokens, and what identifies them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from calib_data.sources import open_documents
from console.errors import EmptySplitError, InputError
from console.progress import say
from quantize.calibration.samples import image_token, render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig

    from calib_data.document import Document
    from calib_data.splits import Split
    from quantize.settings import Settings


@dataclass(frozen=True)
class DocumentSet:
    """The documents of one split. Their pixels are read again when the vision tower needs them."""

    split: Split
    """calibration or evaluation."""
    settings: Settings
    """Settings of the run."""
    config: PreTrainedConfig
    """Config of the model."""
    opened: list[Document]
    """The documents."""
    places: list[int]
    """Their places among all documents of the split."""
    digests: list[str]
    """A digest of each."""
    ids: list[torch.Tensor]
    """Tokens [T] of each."""
    answers: list[int]
    """How many tokens of each, at the end, are the true answer."""
    grids: list[torch.Tensor]
    """The image grid [1, 3] of each, in patches; empty for a model without vision."""
    digest: str
    """A digest of everything that was read."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of hidden states between blocks: float32 where the unquantized model is evaluated."""
        return self.settings.torch_dtype if self.split == "calibration" else torch.float32

    def patches(self) -> Iterator[torch.Tensor]:
        """Yield the patches [P, pixels] of each document. Raises InputError where a document has changed."""
        for i, sample in enumerate(render(self.opened, self.settings.source, self.config)):
            if sample.digest != self.digests[i]:
                source, name = self.settings.documents, self.opened[i].name
                raise InputError(f"{source}: {name} has changed since it was read; give the command again")
            assert sample.patches is not None
            yield sample.patches

    def bytes_needed(self, *, images: bool = True) -> int:
        """Compute the most bytes on disk of hidden states: what a block reads, what it writes, and image tokens.

        images: whether image patches and image tokens count.
        """
        width: int = self.config.get_text_config().hidden_size
        values = 2 * sum(map(len, self.ids)) * width
        if self.grids and images:
            tower = self.config.vision_config
            patches = sum(int(grid.prod(-1).sum()) for grid in self.grids)
            merged = patches // tower.spatial_merge_size**2 * width  # on the disk as long as the decoder's, too
            values = max(values + merged, 2 * patches * tower.hidden_size)
        return int(values * self.dtype.itemsize)


def read_document_sets(
    settings: Settings, config: PreTrainedConfig, *, resumed: bool = False
) -> tuple[DocumentSet, DocumentSet | None]:
    """Read the calibration set and the evaluation set; None where nothing can be evaluated.

    Raises InputError where a source cannot be read. resumed: then its message does not offer other settings.
    """
    calibration = _read("calibration", settings, config)
    if len(calibration) > 1 and not calibration.grids and all(map(calibration.ids[0].equal, calibration.ids)):
        raise InputError(
            f"{settings.documents}: {settings.model} sees no pictures, and without them all {len(calibration)} "
            "documents are the same; give a .jsonl with prompts and answers"
        )
    if not settings.reference:
        return calibration, None
    try:
        evaluation = _read("evaluation", settings, config)
    except EmptySplitError as error:
        say(f"no reference.npz: {error}")
        return calibration, None
    except InputError as error:
        if resumed:
            raise
        raise InputError(f"{error}; or give --reference 0, which needs no evaluation documents") from None
    if not len(evaluation):
        say(f"no reference.npz: no evaluation document of {settings.documents} has a true answer")
        return calibration, None
    return calibration, evaluation


def _read(split: Split, settings: Settings, config: PreTrainedConfig) -> DocumentSet:
    """Read one split; of the evaluation split, the documents with a true answer."""
    count, image = settings.count if split == "calibration" else settings.reference, image_token(config)
    pictures = image is not None
    opened = open_documents(settings.documents, split=split, count=count, seed=settings.seed, pictures=pictures)
    kept, digest, grids = [], hashlib.sha256(), []
    for place, sample in enumerate(render(opened, settings.source, config)):
        if not (split == "calibration" or sample.answer):
            continue
        kept.append((opened[place], place, sample.digest, sample.ids, sample.answer))
        digest.update(sample.digest.encode())
        digest.update(f"{sample.ids.tolist()} {sample.answer}".encode())
        if sample.grid is not None and sample.patches is not None:
            grids.append(sample.grid)
            digest.update(f"{sample.grid.tolist()}".encode() + sample.patches.numpy().tobytes())
    documents, places, digests, ids, answers = map(list, zip(*kept, strict=True)) if kept else ([], [], [], [], [])
    return DocumentSet(split, settings, config, documents, places, digests, ids, answers, grids, digest.hexdigest())
