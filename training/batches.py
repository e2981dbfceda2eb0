"""Training batches: pages of one shape, the characters of their cells, and questions with their answers."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from calib_data.rendered import content, render, vocabulary
from training.architecture import PROCESSOR
from training.chat import Chat, Turn, encode

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from calib_data.rendered.draw import CharBox

SLOTS = 6
"""Characters at most that a merged token is asked for."""
CLASSES = {char: index + 1 for index, char in enumerate(vocabulary.ALPHABET)}
"""Character -> class; 0 is no character."""


@dataclass(frozen=True)
class Batch:
    """Pages of one shape."""

    patches: Tensor
    """[B, P, 588] float32, one frame, in the processor's order."""
    height: int
    """In patches."""
    width: int
    """In patches."""
    characters: Tensor
    """[B, P / 4, SLOTS] classes of the characters in each merged token."""
    tokens: Tensor
    """[B, T], padded on the right, image tokens included; T = 0 for pages without a question."""
    answer: Tensor
    """[B, T] bool: whether the token is to be predicted."""
    attention_target: Tensor
    """[B, T] position of the image token that shows the character, or -1."""


@dataclass(frozen=True)
class Stage:
    """The mix of batches until a step."""

    until: int
    """The first step that is no longer part of it."""
    glyphs: float
    """Share of batches with glyph pages."""
    lines: float
    """Share of batches with single lines; the rest are documents."""
    thinking: float
    """Share of examples with a reasoning."""
    shapes: int = 16
    """How many of the page shapes, from small to large, documents have."""


@dataclass(frozen=True)
class Shape:
    """A page size and what goes with it."""

    width: int
    """In pixels."""
    height: int
    """In pixels."""
    rows: tuple[int, int]
    """Fewest and most rows that fit."""
    pages: int
    """In a batch."""


@dataclass(frozen=True)
class Example:
    """One page."""

    patches: NDArray[np.float32]
    """As in Batch."""
    characters: NDArray[np.int64]
    """As in Batch."""
    chat: Chat
    """Questions and answers; empty for a glyph page."""


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
    """Batches by step. Each depends on the seed and the step only, so that a resumed run sees the same ones."""

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


def _glyphs(rng: Random, shape: Shape) -> Example:
    image, boxes = render.page(content.glyphs(rng, rng.randint(*shape.rows)), rng, size=(shape.width, shape.height))
    return Example(to_patches(image), character_classes(boxes, *image.size), Chat([], [], []))


def _question(rng: Random, shape: Shape, thinking: float) -> Example:
    single, rows = shape.rows == (1, 1), rng.randint(*shape.rows)
    random_text = rows < 4 and rng.random() < 0.3  # cannot be guessed: it must be read
    if random_text:
        contents = content.glyphs(rng, rows)
    else:
        contents = content.line(rng, "training") if single else content.document(rng, "training", rows)
    image, boxes = render.page(contents, rng, size=(shape.width, shape.height))
    kinds: list[render.Kind] = ["line"] if single or random_text else rng.choice(_TURNS)
    # A question that comes up twice is asked once: the second answer would be a copy of the first.
    questions = list({question[0]: question for question in (render.ask(contents, k, rng) for k in kinds)}.values())
    cells = cell_indices(boxes, *image.size)
    printed = "".join(box.char for box in boxes)
    turns = []
    for prompt, answer, thought in questions:
        compact = "".join(answer.split())
        start = printed.index(compact)
        place = tuple(cells[start : start + len(compact)])
        with_thought = prompt == questions[-1][0] and rng.random() < thinking
        turns.append(Turn(prompt, answer, thought if with_thought else None, place))
    places = shape.width * shape.height // 28**2
    return Example(to_patches(image), character_classes(boxes, *image.size), encode(turns, places))


def collate(examples: list[Example], shape: Shape) -> Batch:
    """Stack examples of one shape; tokens are padded on the right with 0."""
    length = max(len(example.chat.tokens) for example in examples)
    tokens = torch.zeros(len(examples), length, dtype=torch.long)
    answer = torch.zeros(len(examples), length, dtype=torch.bool)
    attention_target = torch.full((len(examples), length), -1)
    for row, chat in enumerate(example.chat for example in examples):
        tokens[row, : len(chat.tokens)] = torch.tensor(chat.tokens, dtype=torch.long)
        answer[row, : len(chat.tokens)] = torch.tensor(chat.written, dtype=torch.bool)
        attention_target[row, : len(chat.tokens)] = torch.tensor(chat.attention_target, dtype=torch.long)
    return Batch(
        patches=torch.from_numpy(np.stack([example.patches for example in examples])),
        height=shape.height // 14,
        width=shape.width // 14,
        characters=torch.from_numpy(np.stack([example.characters for example in examples])),
        tokens=tokens,
        answer=answer,
        attention_target=attention_target,
    )


def to_patches(image: Image.Image) -> NDArray[np.float32]:
    """Cut one frame of the processor's patches [P, 588], for a page whose sides are multiples of 28."""
    mean, std = np.float32(PROCESSOR["image_mean"]), np.float32(PROCESSOR["image_std"])
    pixels = (np.asarray(image, np.float32) / np.float32(255) - mean) / std
    height, width, _ = pixels.shape
    blocks = pixels.reshape(height // 28, 2, 14, width // 28, 2, 14, 3)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, 588)


def character_classes(boxes: list[CharBox], width: int, height: int) -> NDArray[np.int64]:
    """Classes [merged tokens, SLOTS] of the characters in each 28x28 cell, in reading order."""
    places = width * height // 28**2
    target = np.zeros((places, SLOTS), np.int64)
    filled = np.zeros(places, np.int64)
    for box, cell in zip(boxes, cell_indices(boxes, width, height), strict=True):
        if filled[cell] < SLOTS:
            target[cell, filled[cell]] = CLASSES[box.char]
            filled[cell] += 1
    return target


def cell_indices(boxes: list[CharBox], width: int, height: int) -> list[int]:
    """Find the merged token of each character: the cell that holds its centre on the middle of its row."""
    columns, rows = width // 28, height // 28
    return [
        min(max(int(box.line / 28), 0), rows - 1) * columns + min(max(int((box.left + box.right) / 56), 0), columns - 1)
        for box in boxes
    ]
