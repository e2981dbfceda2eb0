"""Training examples of the reader: a batch is pages of one shape, their character targets, and what to answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from calib_data import READER
from calib_data.rendered import content, render, vocabulary
from training.architecture import CONFIG, PROCESSOR

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from calib_data.rendered.draw import CharBox

SLOTS = 6  # characters a merged token may be asked for
CLASSES = {char: index + 1 for index, char in enumerate(vocabulary.ALPHABET)}  # class 0: no character
IMAGE = "<|image_pad|>"


@dataclass(frozen=True)
class Batch:
    """Pages of one shape.

    patches: [B, P, 588] float32, one frame, in the processor's order. height, width: in patches.
    characters: [B, P / 4, SLOTS] classes of the characters in each merged token.
    tokens: [B, T] right-padded, image places included; T = 0 for pages without a question.
    answer: [B, T] bool, true where a token is to be predicted.
    gaze: [B, T] position of the image token that shows the character, or -1.
    """

    patches: Tensor
    height: int
    width: int
    characters: Tensor
    tokens: Tensor
    answer: Tensor
    gaze: Tensor


@dataclass(frozen=True)
class Turn:
    """A question, its answer, and a reasoning where thinking is on.

    cells: the merged token of each printed character of the answer, where known.
    """

    prompt: str
    answer: str
    thought: str | None
    cells: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stage:
    """What batches consist of until a step.

    glyphs, lines: shares of batches of glyph pages and of single lines; the rest are documents. thinking: share of
    examples with a reasoning. shapes: how many of the page shapes, from small to large, documents take.
    """

    until: int
    glyphs: float
    lines: float
    thinking: float
    shapes: int = 16


def patches_of(image: Image.Image) -> NDArray[np.float32]:
    """One frame of the processor's patches [P, 588], for a page whose sides are multiples of 28."""
    mean, std = np.float32(PROCESSOR["image_mean"]), np.float32(PROCESSOR["image_std"])
    pixels = (np.asarray(image, np.float32) / np.float32(255) - mean) / std
    height, width, _ = pixels.shape
    blocks = pixels.reshape(height // 28, 2, 14, width // 28, 2, 14, 3)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, 588)


def characters_of(boxes: list[CharBox], width: int, height: int) -> NDArray[np.int64]:
    """Classes [merged tokens, SLOTS] of the characters in each 28x28 cell, in reading order."""
    places = width * height // 28**2
    target = np.zeros((places, SLOTS), np.int64)
    filled = np.zeros(places, np.int64)
    for box, cell in zip(boxes, cells_of(boxes, width, height), strict=True):
        if filled[cell] < SLOTS:
            target[cell, filled[cell]] = CLASSES[box.char]
            filled[cell] += 1
    return target


def cells_of(boxes: list[CharBox], width: int, height: int) -> list[int]:
    """The merged token of each character: the cell that holds its centre on the middle of its row."""
    columns, rows = width // 28, height // 28
    return [
        min(max(int(box.line / 28), 0), rows - 1) * columns + min(max(int((box.left + box.right) / 56), 0), columns - 1)
        for box in boxes
    ]


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((READER / "chat_template.jinja").read_text(encoding="utf-8"))


@cache
def load_tokenizer() -> Tokenizer:
    """The reader's tokenizer."""
    return Tokenizer.from_file(str(READER / "tokenizer.json"))


def prompt_text(prompt: str, places: int, thinking: bool) -> str:
    """The rendered chat of one page and one question, its image place repeated once per merged token."""
    return _chat([_user(prompt, with_image=True)], thinking).replace(IMAGE, IMAGE * places)


@dataclass(frozen=True)
class Chat:
    """Token ids of questions about one page and their answers.

    written: which tokens the model writes itself. gaze: for a token that is a printed character, the position of the
    image token that shows it, else -1.
    """

    tokens: list[int]
    written: list[bool]
    gaze: list[int]


def encode(turns: list[Turn], places: int) -> Chat:
    """Write questions about one page, and their answers, as the template does.

    Several questions share the cost of encoding the page. The template drops the reasoning of past turns, so only the
    last turn may have one.
    """
    messages: list[dict[str, Any]] = []
    text, chat = "", Chat([], [], [])
    for turn in turns:
        messages.append(_user(turn.prompt, with_image=not messages))
        asked = _chat(messages, thinking=turn.thought is not None)
        reply = turn.answer if turn.thought is None else f"{turn.thought}\n</think>\n\n{turn.answer}"
        for part, by_model in ((asked[len(text) :], False), (f"{reply}<|endofturn|>", True)):
            tokens = load_tokenizer().encode(part.replace(IMAGE, IMAGE * places)).ids
            chat.tokens.extend(tokens)
            chat.written.extend([by_model] * len(tokens))
            chat.gaze.extend([-1] * len(tokens))
        _look(chat, turn)
        text = f"{asked}{reply}<|endofturn|>"
        messages.append({"role": "assistant", "content": turn.answer})
    return chat


def _look(chat: Chat, turn: Turn) -> None:
    """Mark where the answer that ends the chat is printed; every printed character is one token."""
    first = chat.tokens.index(CONFIG["image_token_id"])
    answer = len(chat.tokens) - 1 - len(turn.answer)
    printed = [offset for offset, char in enumerate(turn.answer) if not char.isspace()]
    for offset, cell in zip(printed, turn.cells, strict=False):
        chat.gaze[answer + offset] = first + cell


def _user(prompt: str, with_image: bool) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image"}] if with_image else []
    return {"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}


def _chat(messages: list[dict[str, Any]], thinking: bool) -> str:
    return _template().render(messages=messages, add_generation_prompt=True, enable_thinking=thinking)


@dataclass(frozen=True)
class Shape:
    """A page size in pixels, the rows that fit, and how many such pages make a batch."""

    width: int
    height: int
    rows: tuple[int, int]
    pages: int


_LINE_SHAPES = (Shape(224, 56, (1, 1), 48), Shape(224, 56, (1, 1), 48), Shape(224, 112, (1, 1), 32))
_PAGE_SHAPES = (
    Shape(224, 112, (2, 4), 32), Shape(280, 112, (2, 4), 28), Shape(336, 112, (2, 4), 24), Shape(224, 140, (3, 5), 28),
    Shape(280, 140, (3, 5), 24), Shape(336, 140, (3, 5), 20), Shape(224, 168, (4, 6), 24), Shape(280, 168, (4, 6), 20),
    Shape(336, 168, (4, 6), 20), Shape(224, 196, (5, 7), 20), Shape(280, 196, (5, 7), 18), Shape(336, 196, (5, 7), 16),
    Shape(280, 224, (6, 8), 16), Shape(336, 224, (6, 8), 14), Shape(280, 280, (7, 8), 14), Shape(336, 252, (7, 8), 12),
)  # fmt: skip


# What is asked about a document: the transcription comes last, so that no answer can be copied from it.
_TURNS: list[list[render.Kind]] = [
    ["transcription"], ["field"], ["field", "field"], ["field", "field", "field"], ["field", "transcription"],
]  # fmt: skip


class Batches(Dataset[Batch]):
    """Batch number `step` of the curriculum: depends on the seed and the step only, so that a resumed run goes on."""

    def __init__(self, stages: tuple[Stage, ...], seed: int) -> None:
        self.stages, self.seed = stages, seed

    def __getitem__(self, step: int) -> Batch:
        """Draw one batch."""
        rng = Random(f"train/{self.seed}/{step}")
        stage = next((stage for stage in self.stages if step < stage.until), self.stages[-1])
        chance = rng.random()
        if chance < stage.glyphs:
            shape = rng.choice(_PAGE_SHAPES[:4])
            return collate([_glyphs(rng, shape) for _ in range(shape.pages)], shape)
        single = chance < stage.glyphs + stage.lines
        shape = rng.choice(_LINE_SHAPES if single else _PAGE_SHAPES[: stage.shapes])
        return collate([_question(rng, shape, stage.thinking) for _ in range(shape.pages)], shape)


@dataclass(frozen=True)
class Example:
    """One page: patches, character classes, and what is asked and answered."""

    patches: NDArray[np.float32]
    characters: NDArray[np.int64]
    chat: Chat


def _glyphs(rng: Random, shape: Shape) -> Example:
    image, boxes = render.page(content.glyphs(rng, rng.randint(*shape.rows)), rng, size=(shape.width, shape.height))
    return Example(patches_of(image), characters_of(boxes, *image.size), Chat([], [], []))


def _question(rng: Random, shape: Shape, thinking: float) -> Example:
    single, rows = shape.rows == (1, 1), rng.randint(*shape.rows)
    nonsense = rows < 4 and rng.random() < 0.3  # nothing can be guessed: it must be read
    if nonsense:
        said = content.glyphs(rng, rows)
    else:
        said = content.line(rng, "training") if single else content.document(rng, "training", rows)
    image, boxes = render.page(said, rng, size=(shape.width, shape.height))
    kinds: list[render.Kind] = ["line"] if single or nonsense else rng.choice(_TURNS)
    # A question that comes up twice is asked once: the second answer would be a copy of the first.
    asked = list({ask[0]: ask for ask in (render.ask(said, kind, rng) for kind in kinds)}.values())
    cells = cells_of(boxes, *image.size)
    printed = "".join(box.char for box in boxes)
    turns = []
    for prompt, answer, thought in asked:
        compact = "".join(answer.split())
        start = printed.index(compact)
        place = tuple(cells[start : start + len(compact)])
        thinks = prompt == asked[-1][0] and rng.random() < thinking
        turns.append(Turn(prompt, answer, thought if thinks else None, place))
    return Example(
        patches_of(image), characters_of(boxes, *image.size), encode(turns, shape.width * shape.height // 28**2)
    )


def collate(examples: list[Example], shape: Shape) -> Batch:
    """Stack examples of one shape; tokens are padded on the right with 0."""
    length = max(len(example.chat.tokens) for example in examples)
    tokens = torch.zeros(len(examples), length, dtype=torch.long)
    answer = torch.zeros(len(examples), length, dtype=torch.bool)
    gaze = torch.full((len(examples), length), -1)
    for row, chat in enumerate(example.chat for example in examples):
        tokens[row, : len(chat.tokens)] = torch.tensor(chat.tokens, dtype=torch.long)
        answer[row, : len(chat.tokens)] = torch.tensor(chat.written, dtype=torch.bool)
        gaze[row, : len(chat.tokens)] = torch.tensor(chat.gaze, dtype=torch.long)
    return Batch(
        torch.from_numpy(np.stack([example.patches for example in examples])),
        shape.height // 14,
        shape.width // 14,
        torch.from_numpy(np.stack([example.characters for example in examples])),
        tokens,
        answer,
        gaze,
    )
