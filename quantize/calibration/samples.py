"""Documents as the model sees them: token ids and image patches."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from calib_data.sources import open_documents
from console.errors import InputError
from console.files import RESTORE
from console.text import canonical
from runtime.inputs.chat_template import load_chat_template, write_reasoning
from runtime.inputs.images import ImageSettings
from runtime.inputs.tokenizer import load_special_tokens, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, Qwen2VLImageProcessorPil

    from calib_data.document import Document
    from quantize.settings import Settings
    from runtime.inputs.chat_template import ChatTemplate


@dataclass(frozen=True)
class Sample:
    """One document as the model sees it."""

    ids: torch.Tensor
    """Tokens [T], int64."""
    answer: int
    """How many of them, at the end, are the true answer and the end of the turn; 0 without a true answer."""
    digest: str
    """Digest of the document."""
    patches: torch.Tensor | None = None
    """Image patches [P, 3 * 2 * 14 * 14], float32; None for a text-only model."""
    grid: torch.Tensor | None = None
    """Image grid [1, 3] (frames, rows, columns) in patches; None for a text-only model."""


def read_samples(settings: Settings, config: PreTrainedConfig, split: str = "calibration") -> Iterator[Sample]:
    """Open `settings.count` documents of a split and render them, as `render` does."""
    pictures = image_token(config) is not None
    count, seed = settings.count, settings.seed
    documents = open_documents(settings.documents, split=split, count=count, seed=seed, pictures=pictures)
    return render(documents, settings.source, config)


def image_token(config: PreTrainedConfig) -> int | None:
    """Return the id of the image token; None for a text-only model."""
    return getattr(config, "image_token_id", None)


def render(documents: Iterable[Document], model: Path, config: PreTrainedConfig) -> Iterator[Sample]:
    """Render documents with the model's own chat template and image processor, one at a time.

    The turn ends with the true answer where there is one, after its reasoning where it has one. Thinking is on without
    an answer, too: after `<think>` a model does not answer at once. Texts are `canonical`, as in the runtime. Raises
    InputError for a document or a chat template that the model cannot use.
    """
    tokenizer, template, images = _load(model, config)
    for unopened in documents:
        document = unopened  # its picture is decoded once
        if unopened.picture is not None:
            document = replace(unopened, picture=unopened.image)
        try:
            thinking = document.answer is None or document.reasoning is not None
            prompt = _prompt(tokenizer, template.text, document, with_image=images is not None, thinking=thinking)
            answer = _answer(tokenizer, template, document, prompt, with_image=images is not None)
        except InputError:
            raise
        except Exception as error:  # a template is code of the model's author and may raise anything
            raise InputError(f"{template.path}: cannot be rendered ({error}); restore the original file") from None
        if images is None:
            yield Sample(torch.cat([_ids(tokenizer, prompt), answer]), len(answer), document.digest())
            continue
        try:
            features = images(images=[document.image], return_tensors="pt")
        except ValueError as error:  # such as a picture 200 times as wide as it is high
            raise InputError(f"{document.name} is not a picture for this model: {error}") from None
        grid = features["image_grid_thw"]
        pad = tokenizer.convert_ids_to_tokens(config.image_token_id)
        if pad is None or pad not in prompt:
            raise InputError(f"{template.path}: has no place for a picture; restore the original file")
        tokens = int(grid.prod()) // images.merge_size**2
        ids = torch.cat([_ids(tokenizer, prompt.replace(pad, pad * tokens)), answer])
        if ids.tolist().count(config.image_token_id) != tokens:
            raise InputError(
                f"{document.name}: its prompt or answer has {pad}, which stands for the picture; remove it"
            )
        yield Sample(ids, len(answer), document.digest(), features["pixel_values"], grid)


def _load(
    model: Path, config: PreTrainedConfig
) -> tuple[PreTrainedTokenizerBase, ChatTemplate, Qwen2VLImageProcessorPil | None]:
    """Load the model's tokenizer, chat template and image processor; no processor for a text-only model.

    The runtime's own readers come first: what they refuse is refused before the weights are quantized.
    """
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

    load_tokenizer(model)
    load_special_tokens(model)
    template = load_chat_template(model)
    sees = image_token(config) is not None
    if sees:
        _check_image_settings(model, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, config=config)
        images = Qwen2VLImageProcessorPil.from_pretrained(model) if sees else None
    except (OSError, ValueError) as error:
        raise InputError(f"{model} has no usable tokenizer or image processor: {error}") from None
    if not tokenizer.eos_token:
        raise InputError(f"{model}: its tokenizer has no eos_token; restore tokenizer_config.json from the original")
    return tokenizer, template, images


def _check_image_settings(model: Path, config: PreTrainedConfig) -> None:
    """Raise InputError for settings of images that the runtime refuses, or that cut other patches than the model has.

    transformers takes what it can of them, and raises other errors at a picture.
    """
    settings, tower = ImageSettings.from_folder(model), config.vision_config
    cut = (settings.patch_size, settings.temporal_patch_size, settings.merge_size)
    taken = (tower.patch_size, tower.temporal_patch_size, tower.spatial_merge_size)
    if cut != taken:
        raise InputError(
            f"{model}: its image processor has a patch_size, temporal_patch_size and merge_size of {cut}, its "
            f"config.json {taken}; {RESTORE}"
        )


def image_settings(model: Path) -> dict[str, Any]:
    """Return the settings of a model's image processor, as preprocessor_config.json has them."""
    from transformers import Qwen2VLImageProcessorPil

    settings: dict[str, Any] = json.loads(Qwen2VLImageProcessorPil.from_pretrained(model).to_json_string())
    return settings


def _answer(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, document: Document, prompt: str, *, with_image: bool
) -> torch.Tensor:
    """Tokens of reasoning, true answer and end of turn; none without an answer."""
    if document.answer is None:
        return _ids(tokenizer, "")
    text = document.answer
    if document.reasoning is not None:
        closed = _prompt(tokenizer, template.text, document, with_image=with_image, thinking=False)
        text = write_reasoning(template, prompt, closed, document.reasoning) + text
    return _ids(tokenizer, canonical(text) + str(tokenizer.eos_token))


def _prompt(
    tokenizer: PreTrainedTokenizerBase, template: str, document: Document, *, with_image: bool, thinking: bool
) -> str:
    text = canonical(document.prompt)
    content = [{"type": "image"}, {"type": "text", "text": text}] if with_image else text
    prompt: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    return prompt


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)
