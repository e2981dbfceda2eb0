"""The documents of one split on their way through the model: what they are, and how far they have come.

Their hidden states are in a file that a block reads while it writes the next one, so that a run that was killed inside
a block still finds what the block began with.
"""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import TYPE_CHECKING

import torch

from calib_data.sources import open_documents
from console.errors import InputError
from quantize.calibration.block_inputs import DecoderStream, VisionStream
from quantize.calibration.hidden_states import ACTIVATIONS, Activations, Layout
from quantize.calibration.samples import image_token, render
from quantize.solver.token_weights import importance, predicting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel

    from calib_data.document import Document
    from calib_data.splits import Split
    from quantize.journal import Journal
    from quantize.model.families import Family
    from quantize.settings import Settings


class Documents:
    """Documents of a split, one at a time. Hidden states are in files of `dtype` and float32 to whoever works on them.

    ids: tokens [T] of each. answers: how many of them, at the end, are the true answer. places: among all documents of
    the split. digests: of each. digest: of all that was read. vision, decoder: what the blocks of a tower want
    beside hidden states.
    """

    def __init__(
        self, split: Split, settings: Settings, model: PreTrainedModel, family: Family, dtype: torch.dtype
    ) -> None:
        self.split, self.settings, self.dtype = split, settings, dtype
        self.config: PreTrainedConfig = model.config
        self.device = torch.device(settings.device)
        self.ids: list[torch.Tensor] = []
        self.answers: list[int] = []
        self.places: list[int] = []
        self.digests: list[str] = []
        self.digest = ""
        self._opened: list[Document] = []
        self.decoder = DecoderStream(model.get_submodule(family.text), self.device)
        self.vision = VisionStream(model.get_submodule(family.vision), self.device) if family.vision else None

    def __len__(self) -> int:
        return len(self.ids)

    def read(self) -> None:
        """Open the documents and take their tokens and grids; their pixels are read again when their turn comes.

        Of the evaluation split only those with a true answer are kept: nothing can be said about others. Raises
        InputError where a model without vision would see the same document again and again.
        """
        settings, calibrating = self.settings, self.split == "calibration"
        count = settings.count if calibrating else settings.reference
        sees = self.vision is not None
        opened = open_documents(settings.documents, split=self.split, count=count, seed=settings.seed, pictures=sees)
        image, digest = image_token(self.config), hashlib.sha256()
        for place, sample in enumerate(render(opened, settings.model, self.config)):
            if not (calibrating or sample.answer):
                continue
            self._opened.append(opened[place])
            self.places.append(place)
            self.digests.append(sample.digest)
            digest.update(sample.digest.encode())
            self.ids.append(sample.ids)
            self.answers.append(sample.answer)
            self.decoder.importance.append(importance(sample.ids, sample.answer, image).to(self.device))
            self.decoder.predicting.append(predicting(len(sample.ids), sample.answer).to(self.device))
            digest.update(f"{sample.ids.tolist()} {sample.answer}".encode())
            if self.vision is not None:
                assert sample.grid is not None
                assert sample.patches is not None
                self.vision.grids.append(sample.grid)
                digest.update(f"{sample.grid.tolist()}".encode() + sample.patches.numpy().tobytes())
        self.digest = digest.hexdigest()
        if calibrating and self.vision is None and len(self) > 1 and all(map(self.ids[0].equal, self.ids)):
            raise InputError(
                f"{settings.documents}: {settings.model} sees no pictures, and without them all {len(self)} "
                "documents are the same; give a .jsonl with prompts and answers"
            )

    def begin(self, folder: Path, journal: Journal) -> None:
        """Take the folder of a run, where hidden states are, and its journal, which says how far it has come."""
        self.folder, self.journal = folder, journal

    def patches(self) -> Iterator[torch.Tensor]:
        """Patches [P, pixels] of each document. Raises InputError where one is not what it was when it was read."""
        for i, sample in enumerate(render(self._opened, self.settings.model, self.config)):
            if sample.digest != self.digests[i]:
                source, name = self.settings.documents, self._opened[i].name
                raise InputError(f"{source}: {name} has changed since it was read; give the command again")
            assert sample.patches is not None
            yield sample.patches.to(self.device)

    @property
    def states(self) -> Activations:
        """Hidden states in front of the next block."""
        return self._open(self.journal.states[self.split])

    @property
    def images(self) -> Activations | None:
        """Image tokens, once the vision tower is done; None in a model without one."""
        layout = self.journal.images.get(self.split)
        return None if layout is None else self._open(layout)

    def keep(self, states: Iterator[torch.Tensor], lengths: list[int], width: int) -> None:
        """Make new hidden states [T, width] of each document the ones in front of the next block."""
        self.journal.states[self.split] = self._write(states, lengths, width)

    def keep_images(self, images: Iterator[torch.Tensor], lengths: list[int], width: int) -> None:
        """Keep image tokens, in a file that stays until the end."""
        self.journal.images[self.split] = self._write(images, lengths, width)
        del self.journal.states[self.split]

    def advance(self, run: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        """Put what a block makes of the hidden states [T, width] of each document in their place."""
        states = self.states
        first = run(states[0].to(self.device), 0)
        shrunk = len(states[0]) // len(first)  # a merger makes one token of several patches
        lengths = [length // shrunk for length in states.layout.lengths]
        others = (run(states[i].to(self.device), i) for i in range(1, len(states)))
        self.keep(chain([first], others), lengths, first.shape[1])

    def bytes_needed(self) -> int:
        """Bytes on disk of hidden states, at most: those that a block reads and those that it writes, and images."""
        width: int = self.config.get_text_config().hidden_size
        values = 2 * sum(map(len, self.ids)) * width
        if self.vision is not None:
            tower = self.config.vision_config
            patches = sum(int(grid.prod(-1).sum()) for grid in self.vision.grids)
            images = patches // tower.spatial_merge_size**2 * width  # on the disk as long as the decoder's, too
            values = max(values + images, 2 * patches * tower.hidden_size)
        return int(values * self.dtype.itemsize)

    def _write(self, states: Iterator[torch.Tensor], lengths: list[int], width: int) -> Layout:
        layout = Layout(f"{ACTIVATIONS}-{self.split}-{len(self.journal.steps)}", lengths, width)
        written = Activations(self.folder, layout, self.dtype, new=True)
        for i, one in enumerate(states):
            written[i] = one
        written.sync()
        return layout

    def _open(self, layout: Layout) -> Activations:
        return Activations(self.folder, layout, self.dtype)
