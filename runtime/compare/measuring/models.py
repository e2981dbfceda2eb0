"""Opens the models of a comparison, and checks before anything is measured that they can be compared."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from console.errors import InputError, naming
from runtime.compare.layers import check_layers
from runtime.compare.measuring.baseline import Baseline, FolderBaseline, ReferenceBaseline
from runtime.compare.measuring.predictions import token_ids
from runtime.compare.result import Cost
from runtime.evaluate import require_vision
from runtime.model import Model
from runtime.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calib_data.document import Document
    from runtime.ort.sessions import Options

MIB = 1 << 20


@dataclass(frozen=True)
class Models:
    """The models of a comparison, by their paths."""

    baseline: Path
    """An exported folder, or a reference.npz."""
    candidates: tuple[Path, ...]
    """Exported folders."""
    device: str
    source: str | None = None
    """Where the documents of a reference are now; None for where quantize read them."""

    @property
    def has_reference(self) -> bool:
        """Whether the baseline is a reference.npz."""
        return self.baseline.suffix == ".npz"

    def load(self, options: Options | None = None) -> LoadedModels:
        """Load all models. Raises InputError if one cannot be loaded, or if they cannot be compared."""
        costs = []
        baseline: Baseline
        own, weights = None, None
        if self.has_reference:
            if not self.baseline.is_file():
                raise InputError(f"{self.baseline}: no such file; python -m quantize writes it into its folder")
            baseline = ReferenceBaseline(self.baseline, self.source)
        else:
            own, cost = _load_with_cost(self.baseline, self.device, options)
            baseline, weights = FolderBaseline(own), Weights(self.baseline, own.manifest.weights)
            costs.append(cost)
        candidates: list[Model] = []
        for path in self.candidates:
            model, cost = _load_with_cost(path, self.device, options)
            _check_same_inputs(own or (candidates or [model])[0], model)
            if isinstance(baseline, ReferenceBaseline):
                _check_reference(baseline, model)
            check_layers(path, model.manifest, weights)
            candidates.append(model)
            costs.append(cost)
        return LoadedModels(baseline, candidates, costs)


@dataclass(frozen=True)
class LoadedModels:
    """Models in memory."""

    baseline: Baseline
    candidates: list[Model]
    costs: list[Cost]
    """Of the baseline, if it is a folder, and of every candidate."""

    @property
    def folders(self) -> list[Model]:
        """All models that are exported folders: the baseline, unless it is a reference, and the candidates."""
        return [*([self.baseline.model] if isinstance(self.baseline, FolderBaseline) else []), *self.candidates]

    def release(self) -> None:
        """Free the memory of all graphs; tokenizers and settings stay."""
        for model in self.folders:
            model.unload()


def _load_with_cost(path: Path, device: str, options: Options | None) -> tuple[Model, Cost]:
    before = _resident()
    model = Model(path, device, options)
    model.open_sessions()  # its memory is part of the cost
    after = _resident()
    cache = model.decoder.cache_bytes(4096)
    return model, Cost(
        weights=sum(file.bytes for file in model.manifest.weights.values()) / MIB,
        kv_cache_at_4096=cache / MIB,
        resident=None if before is None or after is None else (after - before) / MIB,
        tokens_per_second=None,
    )


def _resident() -> int | None:
    """Resident memory of this process in bytes; None where the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _check_same_inputs(baseline: Model, candidate: Model) -> None:
    """Raise InputError unless both models see images, prepare them alike and have the same vocabulary."""
    models, folders = (baseline, candidate), (baseline.folder, candidate.folder)
    for model in models:
        require_vision(model)
    sizes = [model.manifest.text.vocab_size for model in models]
    # Vocabularies, not files: another tool may have saved the same tokenizer in another layout.
    vocabularies = [model.chat.vocabulary for model in models]
    if sizes[0] != sizes[1] or vocabularies[0] != vocabularies[1]:
        raise InputError(f"{folders[1]}: its vocabulary is not that of {folders[0]}; give folders of one model")
    settings = [model.image_settings for model in models]
    if settings[0] != settings[1]:
        raise InputError(f"{folders[1]}: its image settings are not those of {folders[0]}; copy them from one model")


def _check_reference(baseline: ReferenceBaseline, candidate: Model) -> None:
    """Raise InputError if a candidate prepares images differently from the model that the reference was made with.

    The same for a reference with tokens that the candidate does not have.
    """
    if baseline.largest_id >= candidate.manifest.text.vocab_size:
        raise InputError(
            f"{candidate.folder}: its vocabulary lacks token {baseline.largest_id} of {baseline.path}; give files of "
            "one model"
        )
    if baseline.image_settings not in (None, candidate.image_settings):
        raise InputError(
            f"{candidate.folder}: its image settings are not those that {baseline.path} was made with; copy them from "
            "one model"
        )


def check_documents(loaded: LoadedModels, documents: Sequence[Document]) -> None:
    """Raise InputError for a document that exceeds a model's context, or that models tokenize differently."""
    for document in documents:
        opened = replace(document, picture=document.image)
        with naming(document.name):
            expected = loaded.baseline.token_ids(opened)
            for model in loaded.folders:
                _check_tokens(model, opened, expected, loaded.baseline.path)


def _check_tokens(model: Model, document: Document, expected: Sequence[int], baseline: Path) -> None:
    tokens, context = token_ids(model, document), model.manifest.text.context
    if len(tokens) > context:
        raise InputError(
            f"prompt and known answer: {len(tokens)} tokens, the context of {model.folder} is {context}; shorten them"
        )
    if tokens != expected:
        raise InputError(
            f"{model.folder}: its tokens of {document.name} are not those of {baseline}: the answer, tokenizer, chat "
            "template or end of turn differs; give folders of one model, or, for a reference, run python -m quantize "
            "again"
        )
