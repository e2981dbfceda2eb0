"""Rendered documents: receipts, invoices, forms, tables, letters and single lines, with their ground truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Literal, get_args

from calib_data import content, draw, fonts, vocabulary
from calib_data.document import Document
from calib_data.draw import Style

if TYPE_CHECKING:
    from PIL import Image

    from calib_data.content import Content, Split
    from calib_data.draw import CharBox

Kind = Literal["line", "field", "transcription"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TILE = 28  # pixels of a merged token: sizes are multiples of it, so no processor resizes a rendered page


@dataclass(frozen=True)
class Rendered:
    """A document with everything that the renderer knows about it.

    text: the transcription. fields: field key -> value. boxes: every printed character with its place.
    thought: a short reasoning that leads to the answer.
    """

    document: Document
    text: str
    fields: dict[str, str]
    boxes: list[CharBox]
    thought: str


def render(split: Split, seed: int, index: int, kind: Kind | None = None, font: str | None = None) -> Rendered:
    """Draw one document; the same arguments always give the same pixels.

    kind: what is asked; None draws it by chance. font: a name from `fonts`; None draws one of the training fonts.
    """
    rng = Random(f"{split}/{seed}/{kind}/{index}")
    chosen = rng.choice(KINDS) if kind is None else kind
    said = content.line(rng, split) if chosen == "line" else content.document(rng, split, rng.randint(2, 8))
    image, boxes = page(said, rng, font)
    prompt, answer, thought = ask(said, chosen, rng)
    name = f"{split}/{seed}/{kind or 'mix'}/{index}"
    return Rendered(Document(image, prompt, answer, name), said.text, said.fields, boxes, thought)


def documents(
    split: Split, count: int, seed: int = 0, kind: Kind | None = None, font: str | None = None
) -> list[Document]:
    """Draw `count` documents of a split."""
    return [render(split, seed, index, kind, font).document for index in range(count)]


def page(
    said: Content, rng: Random, font: str | None = None, size: tuple[int, int] | None = None
) -> tuple[Image.Image, list[CharBox]]:
    """Choose a style, and a page size where none is given, and draw the content."""
    rows = len(said.rows)
    style = _style(rng, font or rng.choice(fonts.TRAINING_FONTS), single=rows == 1)
    if size is not None:
        style = _fitted(style, said, *size)
    elif rows == 1:
        size = 224, 56 if rng.random() < 0.75 else 112
    else:
        widest = max(draw.width_of(row.text, style, style.size) for row in said.rows) + 2 * style.margin
        width = rng.choice([w for w in (224, 280, 336) if w >= widest] or [336])
        size = width, max(112, math.ceil((rows * style.pitch + 12) / TILE) * TILE)
    return draw.draw(said.rows, style, *size, rng)


def _fitted(style: Style, said: Content, width: int, height: int) -> Style:
    """The style with type and spacing small enough for a page of this size, though not under 13 pixels."""
    size, room = style.size, width - 2 * style.margin
    while size > 13 and any(draw.width_of(row.text, style, size) > room for row in said.rows):
        size -= 1
    return replace(style, size=size, pitch=min(style.pitch, (height - 4) / len(said.rows)))


def _style(rng: Random, font: str, single: bool) -> Style:
    size = rng.randint(18, 25) if single else rng.randint(15, 21)
    return Style(
        font=font,
        size=size,
        margin=rng.randint(4, 14),
        pitch=size * rng.uniform(1.3, 1.6),
        ink=rng.randint(0, 90),
        paper=rng.randint(205, 255),
        angle=rng.choice((0.0, rng.uniform(-2, 2) if single else rng.uniform(-1.2, 1.2))),
        noise=rng.choice((0.0, rng.uniform(2, 12))),
        jpeg=rng.choice((None, rng.randint(35, 90))),
    )


def ask(said: Content, kind: Kind, rng: Random) -> tuple[str, str, str]:
    """Prompt, answer and reasoning."""
    korean = said.korean
    if kind != "field":
        return vocabulary.READ[korean], said.text, vocabulary.THOUGHTS["read"][korean]
    key = rng.choice(sorted(said.fields))
    name = vocabulary.LABELS[key][korean][0]
    thought = vocabulary.THOUGHTS["field"][korean].format(name)
    return vocabulary.QUESTIONS[key][korean], said.fields[key], thought
