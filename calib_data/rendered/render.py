"""Rendered documents: receipts, invoices, forms, tables, letters and single lines, with their ground truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Literal, get_args

from calib_data.document import Document
from calib_data.rendered import content, draw, fonts, vocabulary
from calib_data.rendered.draw import Style

if TYPE_CHECKING:
    from PIL import Image

    from calib_data.rendered.content import Content
    from calib_data.rendered.draw import CharBox
    from calib_data.splits import Split

Kind = Literal["line", "field", "transcription", "reasoning"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MIX: tuple[Kind, ...] = ("line", "field", "transcription")
"""What None chooses among: kinds whose answers come at once."""
TILE = 28
"""Pixels of a merged token. Page sizes are multiples of it, so no processor resizes a rendered page."""


@dataclass(frozen=True)
class Rendered:
    """A document with everything that the renderer knows about it."""

    document: Document
    """The picture, a question and its answer."""
    text: str
    """The transcription."""
    fields: dict[str, str]
    """Field key -> printed value."""
    boxes: list[CharBox]
    """Every printed character with its place."""
    thought: str
    """A short reasoning that leads to the answer."""


def render(split: Split, seed: int, index: int, kind: Kind | None = None, font: str | None = None) -> Rendered:
    """Draw one document; equal arguments give equal pixels.

    kind: what is asked; None chooses at random. font: a name from `fonts`; None chooses a training font at random.
    """
    rng = Random(f"{split}/{seed}/{kind}/{index}")
    chosen = rng.choice(MIX) if kind is None else kind
    contents = content.line(rng, split) if chosen == "line" else content.document(rng, split, rng.randint(2, 8))
    image, boxes = page(contents, rng, font)
    prompt, answer, thought = ask(contents, chosen, rng)
    name = f"{split}/{seed}/{kind or 'mix'}/{index}"
    reasoning = thought if chosen == "reasoning" else None
    return Rendered(
        Document(image, prompt, answer, name, reasoning=reasoning), contents.text, contents.fields, boxes, thought
    )


def documents(
    split: Split, count: int, seed: int = 0, kind: Kind | None = None, font: str | None = None
) -> list[Document]:
    """Draw `count` documents of a split."""
    return [render(split, seed, index, kind, font).document for index in range(count)]


def page(
    contents: Content, rng: Random, font: str | None = None, size: tuple[int, int] | None = None
) -> tuple[Image.Image, list[CharBox]]:
    """Draw contents in a random style, on a page of random size unless one is given (width, height in pixels)."""
    rows = len(contents.rows)
    style = _style(rng, font or rng.choice(fonts.TRAINING_FONTS), single=rows == 1)
    if size is not None:
        style = _fitted(style, contents, *size)
    elif rows == 1:
        size = 224, 56 if rng.random() < 0.75 else 112
    else:
        widest = max(draw.width_of(row.text, style, style.size) for row in contents.rows) + 2 * style.margin
        width = rng.choice([w for w in (224, 280, 336) if w >= widest] or [336])
        size = width, max(112, math.ceil((rows * style.pitch + 12) / TILE) * TILE)
    return draw.draw(contents.rows, style, *size, rng)


def _fitted(style: Style, contents: Content, width: int, height: int) -> Style:
    """The style with type and spacing small enough for a page of this size, though not under 13 pixels."""
    size, available = style.size, width - 2 * style.margin
    while size > 13 and any(draw.width_of(row.text, style, size) > available for row in contents.rows):
        size -= 1
    return replace(style, size=size, pitch=min(style.pitch, (height - 4) / len(contents.rows)))


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


def ask(contents: Content, kind: Kind, rng: Random) -> tuple[str, str, str]:
    """Make a question about a document: prompt, answer and reasoning."""
    korean = contents.korean
    if kind not in ("field", "reasoning"):
        return vocabulary.READ[korean], contents.text, vocabulary.THOUGHTS["read"][korean]
    key = rng.choice(sorted(contents.fields))
    name = vocabulary.LABELS[key][korean][0]
    thought = vocabulary.THOUGHTS["field"][korean].format(name)
    return vocabulary.QUESTIONS[key][korean], contents.fields[key], thought
