"""Calibration documents as the model sees them: token ids and image patches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError

from calib_data.sources import open_documents
from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, Qwen2VLImageProcessorPil

    from calib_data.document import Document
    from quantize.settings import Settings

TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Sample:
    """One document as the model sees it.

    ids [T] int64, of which the last `answer` are the true answer and the end of the turn (0 where it is not known);
    patches [P, 3 * 2 * 14 * 14] float32 and their grid [1, 3] (frames, rows, columns), both None for a text-only model;
    digest: of the document.
    """

    ids: torch.Tensor
    answer: int
    digest: str
    patches: torch.Tensor | None = None
    grid: torch.Tensor | None = None


def read_samples(settings: Settings, config: PreTrainedConfig, split: str = "calibration") -> Iterator[Sample]:
    """Open documents of a split and render them, as `render` does."""
    sees = image_token(config) is not None
    documents = open_documents(settings.documents, split=split, count=settings.count, seed=settings.seed, pictures=sees)
    return render(documents, settings.model, config)


def image_token(config: PreTrainedConfig) -> int | None:
    """Id of the token that stands for a picture's place; None for a model that reads text only."""
    return getattr(config, "image_token_id", None)


def render(documents: Iterable[Document], model: Path, config: PreTrainedConfig) -> Iterator[Sample]:
    """Render documents with the model's own chat template and image processor, one at a time.

    The turn ends with the true answer where there is one; thinking is on only where there is none, since after
    `<think>` a model would not answer at once.
    """
    tokenizer, images = _load(model, config)
    for document in documents:
        try:
            prompt = _prompt(tokenizer, document, with_image=images is not None)
        except (TemplateError, TypeError, ValueError) as error:  # whatever a template does with what it is given
            raise InputError(
                f"the chat template of {model} fails ({error}); restore {TEMPLATE} from the original"
            ) from None
        answer = _ids(tokenizer, "" if document.answer is None else document.answer + tokenizer.eos_token)
        if images is None:
            yield Sample(torch.cat([_ids(tokenizer, prompt), answer]), len(answer), document.digest())
            continue
        try:
            features = images(images=[document.image], return_tensors="pt")
        except ValueError as error:  # a picture 200 times as wide as it is high, for one
            raise InputError(f"{document.name} is no picture for this model: {error}") from None
        grid = features["image_grid_thw"]
        pad = tokenizer.convert_ids_to_tokens(config.image_token_id)
        if pad is None or pad not in prompt:
            raise InputError(f"the chat template of {model} has no place for a picture; restore {TEMPLATE}")
        tokens = int(grid.prod()) // images.merge_size**2
        ids = torch.cat([_ids(tokenizer, prompt.replace(pad, pad * tokens)), answer])
        if ids.tolist().count(config.image_token_id) != tokens:
            raise InputError(
                f"{document.name}: its prompt or answer has {pad}, which stands for the picture; remove it"
            )
        yield Sample(ids, len(answer), document.digest(), features["pixel_values"], grid)


def _load(model: Path, config: PreTrainedConfig) -> tuple[PreTrainedTokenizerBase, Qwen2VLImageProcessorPil | None]:
    """The model's tokenizer, with all that a turn needs, and its image processor where it sees."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, config=config)
        sees = image_token(config) is not None
        images = Qwen2VLImageProcessorPil.from_pretrained(model) if sees else None
    except (OSError, ValueError) as error:
        raise InputError(f"{model} has no usable tokenizer or image processor: {error}") from None
    for part, file in (("chat_template", TEMPLATE), ("eos_token", "tokenizer_config.json")):
        if not getattr(tokenizer, part):
            raise InputError(f"{model}: its tokenizer has no {part}; restore {file} from the original")
    return tokenizer, images


def image_settings(model: Path) -> dict[str, Any]:
    """How a model's image processor prepares pictures, as its file has it."""
    from transformers import Qwen2VLImageProcessorPil

    settings: dict[str, Any] = json.loads(Qwen2VLImageProcessorPil.from_pretrained(model).to_json_string())
    return settings


def _prompt(tokenizer: PreTrainedTokenizerBase, document: Document, with_image: bool) -> str:
    content = [{"type": "image"}, {"type": "text", "text": document.prompt}] if with_image else document.prompt
    prompt: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=document.answer is None,
    )
    return prompt


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)
