"""Open the documents of a split, whatever the source."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, TypeVar

from calib_data.images import open_image
from calib_data.rendered.render import KINDS, documents
from calib_data.sources.dataset import dataset_documents, holds_dataset
from calib_data.sources.folder import folder_documents
from calib_data.sources.jsonl import jsonl_documents
from calib_data.sources.pdf import draw_page, page_count, pdf_documents, say_attached
from calib_data.splits import SPLITS, Split, split_of_picture, split_of_prompt
from console.errors import EmptySplitError, InputError
from console.files import existing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL import Image

    from calib_data.document import Document

Choice = TypeVar("Choice", bound=str)


def open_documents(
    source: str = "rendered", *, split: str, count: int, seed: int = 0, kind: str | None = None, pictures: bool = True
) -> list[Document]:
    """Open at most `count` documents of a split ("calibration", "evaluation", or "training" of rendered ones).

    source: "rendered", one kind of these such as "rendered:reasoning", a folder of images (an answer is read from the
    .txt of the same name), a .pdf, a .jsonl of {"image", "prompt", "answer", "reasoning"} or other names of `fields`,
    with paths relative to the file (an image without a prompt is to be read), a local dataset folder, or a Hugging Face
    dataset id; if the dataset has several splits, name one: "id:validation".
    seed: which documents are drawn. kind: rendered only, one of `render.KINDS` or None for a mix. pictures: every
    document must have one; False lets a .jsonl have prompts and answers alone.

    Raises InputError, naming the source or the file, if anything cannot be read, and EmptySplitError if the source has
    no document in this split. Pictures are opened one at a time, in random order, until `count` are of the split, and
    again when they are used; none is kept. So time does not grow with the source.
    """
    chosen_split = _choice(SPLITS, "split", split)
    if count < 1:
        raise InputError(f"{count} documents asked for: give at least 1")
    rendered, colon, named = source.partition(":")
    if rendered == "rendered" and not (colon and kind):
        kind = named if colon else kind
        return documents(chosen_split, count, seed, None if kind is None else _choice(KINDS, "kind", kind))
    if kind is not None:
        raise InputError(f"kind {kind!r} chooses among rendered documents; {source} has only its own")
    if chosen_split == "training":
        raise InputError(f"{source}: only rendered documents are for training")
    openers = _documents(source)
    Random(f"{split}/{seed}").shuffle(openers)
    opened = (opener() for opener in openers)
    chosen = list(islice((one for one in opened if _split(source, one, pictures) == chosen_split), count))
    if not chosen:
        raise EmptySplitError(
            f"{source}: none of its {len(openers)} documents is for {split}: 60 % are for calibration, "
            "40 % for evaluation; give a larger source"
        )
    return chosen


def open_pictures(path: Path) -> Iterator[tuple[str, Image.Image]]:
    """Open an image file, or draw the pages of a PDF one at a time: for each its name in errors and the RGB picture.

    Raises InputError as `open_image` does, and for a PDF that cannot be read or drawn.
    """
    path = existing(path)
    if path.suffix.lower() != ".pdf" or not path.is_file():
        yield str(path), open_image(path)
        return
    say_attached(path)
    for index in range(page_count(path)):
        yield f"{path}: page {index + 1}", draw_page(path, index)


def shortfall(source: str, split: Split, opened: int, asked: int) -> str:
    """What to print after the number of documents opened if there are fewer than asked for; else nothing."""
    if opened >= asked:
        return ""
    other = "evaluation" if split == "calibration" else "calibration"
    return f" instead of {asked} ({source} has no more for {split}, other pages are kept for {other})"


def _documents(source: str) -> list[Callable[[], Document]]:
    """Functions that open the documents of a source that is not rendered."""
    path, name, split = existing(Path(source)), source, None
    if not path.exists() and (named := re.fullmatch(r"(.*[^:]):([\w.-]+)", source)):
        name, split = named.groups()
    found: list[Callable[[], Document]]
    if path.is_dir():
        found = folder_documents(path)
        if not found and holds_dataset(path):
            found = dataset_documents(source, None)
    elif split and Path(name).is_dir() and holds_dataset(Path(name)):
        found = dataset_documents(name, split)
    elif path.suffix.lower() == ".pdf" and path.is_file():
        found = pdf_documents(path)
    elif path.suffix.lower() == ".jsonl" and path.is_file():
        found = jsonl_documents(path)
    elif path.exists():
        raise InputError(f"{path}: is not a folder, a .pdf or a .jsonl file, give one of these")
    elif path.suffix.lower() in {".pdf", ".jsonl"} or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(
            f"{path}: no such file or folder, give a folder of images, a .pdf, a .jsonl or a dataset, as owner/name"
        )
    else:
        found = dataset_documents(name, split)
    if not found:
        raise InputError(f"{source}: holds no documents, give images, PDF pages, lines of JSON or rows with pictures")
    return found


def _split(source: str, document: Document, pictures: bool) -> Split:
    """The split of a document. Raises InputError now, not after hours, if its picture is damaged or missing."""
    if document.picture is not None:
        return split_of_picture(document.image)
    if pictures:
        raise InputError(f"{source}: {document.name} has no 'image', and a model that sees is to read it; add one")
    return split_of_prompt(document.prompt)


def _choice(choices: tuple[Choice, ...], what: str, given: str) -> Choice:
    for choice in choices:
        if choice == given:
            return choice
    raise InputError(f"unknown {what} {given!r}: choose one of {', '.join(choices)}")
