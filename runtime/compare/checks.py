"""What would stop a comparison, or make it one of two models, found before anything is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from console.errors import InputError, naming
from runtime.compare.baseline import FolderBaseline
from runtime.compare.measure import token_ids
from runtime.evaluate import require_vision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calib_data.document import Document
    from runtime.compare.baseline import Baseline, ReferenceBaseline
    from runtime.generate import Model


def require_same_inputs(baseline: Model, candidate: Model) -> None:
    """Raise InputError for models that see no pictures, or prepare them otherwise, or know other tokens."""
    models, folders = (baseline, candidate), (baseline.folder, candidate.folder)
    for model in models:
        require_vision(model)
    sizes = [model.manifest.text.vocab_size for model in models]
    # The files may differ in how they are laid out.
    vocabularies = [Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab() for folder in folders]
    if sizes[0] != sizes[1] or vocabularies[0] != vocabularies[1]:
        raise InputError(f"{folders[1]}: its tokens are not those of {folders[0]}; give two folders of one model")
    settings = [model.image_settings for model in models]
    if settings[0] != settings[1]:
        raise InputError(f"{folders[1]}: its image settings are not those of {folders[0]}; copy them from one model")


def require_same_images(baseline: ReferenceBaseline, candidate: Model) -> None:
    """Raise InputError for a model that prepares pictures otherwise than the one that a reference is of."""
    if baseline.image_settings not in (None, candidate.image_settings):
        raise InputError(
            f"{candidate.folder}: its image settings are not those that {baseline.path} was made with; copy them from "
            "one model"
        )


def changed(document: Document) -> InputError:
    """The error for a page that was saved anew while it was compared."""
    return InputError(f"{document.name} has changed since it was read; give the command again")


def require_measurable(baseline: Baseline, candidates: Sequence[Model], documents: Sequence[Document]) -> None:
    """Raise InputError for a document that is too long for a model, or that is other tokens than to the baseline."""
    models = [*([baseline.model] if isinstance(baseline, FolderBaseline) else []), *candidates]
    for document in documents:
        opened = replace(document, picture=document.image)
        with naming(document.name):
            expected = baseline.token_ids(opened)
            for model in models:
                found, context = token_ids(model, opened), model.manifest.text.context
                if len(found) > context:
                    raise InputError(
                        f"prompt and known answer: {len(found)} tokens, the context of {model.folder} is {context}; "
                        "shorten them"
                    )
                if found != expected:
                    raise InputError(
                        f"{model.folder}: its tokens of {document.name} are not those of {baseline.path}: the answer, "
                        "tokenizer, chat template or end of a turn is another; give folders of one model, or, for a "
                        "reference, run python -m quantize again"
                    )
