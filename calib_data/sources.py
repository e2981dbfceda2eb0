"""Where documents come from: the built-in renderer, a folder of images, a PDF, a JSONL file, a Hugging Face dataset.

The three splits of one source never share a document. Rendered ones are apart by their values (see `content`); items of
any other source belong to one split by a hash of their name, so an item stays in its split when others are added.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from .content import SPLITS, Split
from .document import Document
from .errors import EmptySplitError, InputError
from .images import open_image, to_rgb
from .render import KINDS, documents
from .vocabulary import READ

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
PDF_DPI = 150  # an A4 page of 2.2 million pixels, within the processor's 3.2 million
_DATASET_FILES = ("*.parquet", "*.arrow", "dataset_dict.json", "dataset_info.json")
_PROMPTS = ("prompt", "question", "query")
_ANSWERS = ("answer", "answers", "text", "ground_truth")

Name = TypeVar("Name", bound=str)
# What can be opened later: the name that decides the split, and how to make the document.
Item = tuple[str, Callable[[], Document]]


def open_documents(
    source: str = "rendered", *, split: str, count: int, seed: int = 0, kind: str | None = None
) -> list[Document]:
    """Open at most `count` documents of a split ("training", "calibration" or "evaluation").

    source: "rendered", a folder of images (an answer is read from the .txt of the same name), a .pdf, a .jsonl of
    {"image", "prompt", "answer"} with paths relative to the file, a local dataset folder, or a Hugging Face dataset id.
    seed: which documents are drawn. kind: rendered only, one of `render.KINDS` or None for a mix.

    Raises InputError, naming the source or the file, for whatever cannot be read.
    """
    wanted = _one_of(SPLITS, "split", split)
    if count < 1:
        raise InputError(f"{count} documents asked for: give at least 1")
    if source == "rendered":
        return documents(wanted, count, seed, None if kind is None else _one_of(KINDS, "kind", kind))
    if kind is not None:
        raise InputError(f"kind {kind!r} chooses among rendered documents; {source} has only its own")
    items = _items(source)
    chosen = [item for item in items if split_of_item(item[0]) == wanted]
    if not chosen:
        raise EmptySplitError(
            f"{source}: none of its {len(items)} documents falls into the {split} split, give a larger source"
        )
    Random(f"{split}/{seed}").shuffle(chosen)
    return [make() for _, make in chosen[:count]]


def split_of_item(name: str) -> Split:
    """The split of an item by its name: 20 % training, 40 % calibration, 40 % evaluation."""
    fifth = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) % 5
    return "training" if fifth == 0 else "calibration" if fifth < 3 else "evaluation"


def _one_of(known: tuple[Name, ...], what: str, given: str) -> Name:
    for name in known:
        if name == given:
            return name
    raise InputError(f"unknown {what} {given!r}: choose one of {', '.join(known)}")


def _items(source: str) -> list[Item]:
    path = Path(source)
    if path.is_dir():
        is_dataset = any(found for pattern in _DATASET_FILES for found in path.rglob(pattern))
        items = _dataset(source) if is_dataset else _folder(path)
    elif path.is_file() and path.suffix.lower() == ".pdf":
        items = _pdf(path)
    elif path.is_file() and path.suffix.lower() == ".jsonl":
        items = _jsonl(path)
    elif path.exists():
        raise InputError(f"{path}: is not a folder, a .pdf or a .jsonl file, give one of these")
    elif path.suffix.lower() in {".pdf", ".jsonl"} or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise InputError(f"{path}: no such file or folder, give a folder of images, a .pdf, a .jsonl or a dataset id")
    else:
        items = _dataset(source)
    if not items:
        raise InputError(f"{source}: holds no documents")
    return items


def _folder(folder: Path) -> list[Item]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{folder}: holds no images, put PNG, JPEG, TIFF or WebP files in it")
    return [(file.name, lambda file=file: _image_file(file)) for file in files]  # type: ignore[misc]


def _image_file(file: Path) -> Document:
    truth = file.with_suffix(".txt")
    answer = _text(truth).strip() if truth.is_file() else None
    return Document(open_image(file), READ[0], answer, file.name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _pdf(path: Path) -> list[Item]:
    if importlib.util.find_spec("pypdfium2") is None:
        raise InputError(f"{path}: reading PDF files needs pypdfium2, install the extra 'data'")
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(path) as pdf:
            pages = len(pdf)
    except pypdfium2.PdfiumError as error:
        raise InputError(f"{path}: cannot be read as a PDF ({error}), it may be damaged or encrypted") from error

    def page(number: int) -> Document:
        try:
            with pypdfium2.PdfDocument(path) as pdf:
                image = pdf[number].render(scale=PDF_DPI / 72).to_pil().convert("RGB")
        except pypdfium2.PdfiumError as error:
            raise InputError(f"{path}: page {number + 1} cannot be drawn ({error})") from error
        return Document(image, READ[0], None, f"{path.name}/{number + 1}")

    return [(f"{path.name}/{number + 1}", lambda number=number: page(number)) for number in range(pages)]  # type: ignore[misc]


def _jsonl(path: Path) -> list[Item]:
    items: list[Item] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            row = _json_row(f"{path}: line {number}", line)
            # The picture decides the split: two questions about one picture are never apart.
            items.append((row["image"], lambda row=row, number=number: _json_document(path, row, number)))  # type: ignore[misc]
    return items


def _json_row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError(f'{where} is not an object, write {{"image": ..., "prompt": ..., "answer": ...}}')
    for key in ("image", "prompt"):
        if not isinstance(row.get(key), str):
            raise InputError(f"{where} has no text under {key!r}")
    if not isinstance(row.get("answer"), str | None):
        raise InputError(f"{where} has an 'answer' that is not text")
    return row


def _json_document(path: Path, row: dict[str, Any], number: int) -> Document:
    try:
        image = open_image(path.parent / row["image"])
    except InputError as error:
        raise InputError(f"{path}: line {number}: {error}") from error
    return Document(image, row["prompt"], row.get("answer"), f"{row['image']}:{number}")


def _dataset(source: str) -> list[Item]:
    """Rows of a Hugging Face dataset, online or local, that have an image column."""
    if importlib.util.find_spec("datasets") is None:
        raise InputError(f"{source}: no such file or folder, and reading a dataset needs the extra 'data' (datasets)")
    import datasets

    try:
        saved = (Path(source) / "dataset_info.json").exists() or (Path(source) / "dataset_dict.json").exists()
        loaded = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    except Exception as error:  # a library of many back ends: network, hub, parquet, arrow
        reason = str(error).partition("\n")[0]
        raise InputError(f"{source}: no local folder, and not loaded as a Hugging Face dataset ({reason})") from error
    table = next(iter(loaded.values())) if isinstance(loaded, dict) else loaded
    if "image" not in table.column_names:
        raise InputError(f"{source}: has no column 'image' but {', '.join(table.column_names)}")
    prompt = next((name for name in _PROMPTS if name in table.column_names), None)
    answer = next((name for name in _ANSWERS if name in table.column_names), None)

    def row(number: int) -> Document:
        cells = table[number]
        truth: Any = cells[answer] if answer else None
        if isinstance(truth, list):  # DocVQA keeps every accepted answer
            truth = truth[0] if truth else None
        if not isinstance(truth, str | None):
            raise InputError(f"{source}: row {number} has an answer that is not text in its column {answer!r}")
        asked = cells[prompt] if prompt else READ[0]
        return Document(_dataset_image(cells["image"], source, number), asked, truth, f"{source}/{number}")

    return [(f"row/{number}", lambda number=number: row(number)) for number in range(len(table))]  # type: ignore[misc]


def _dataset_image(image: Image.Image | None, source: str, number: int) -> Image.Image:
    if image is None or not hasattr(image, "convert"):
        raise InputError(f"{source}: row {number} has no picture in its column 'image'")
    return to_rgb(image)
