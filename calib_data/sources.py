"""Where documents come from: the built-in renderer, a folder of images, a PDF, a JSONL file, a Hugging Face dataset.

The splits of one source never share a document. Rendered ones are apart by their values (see `content`); items of any
other source are for calibration or for evaluation by a hash of their name, or of their picture where rows of a table
share one, or of their prompt where they have none, so an item stays in its split when others are added.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from calib_data.content import SPLITS, Split
from calib_data.document import Document
from calib_data.images import open_image, read_image
from calib_data.render import KINDS, documents
from calib_data.vocabulary import READ
from console.errors import EmptySplitError, InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
PDF_DPI = 150  # an A4 page of 2.2 million pixels, within the processor's 3.2 million
_DATASET_FILES = ("*.parquet", "*.arrow", "dataset_dict.json", "dataset_info.json")
_PROMPTS = ("prompt", "question", "query")
_ANSWERS = ("answer", "answers", "text", "ground_truth")

Name = TypeVar("Name", bound=str)
# What can be made later: the name that decides the split, and how to make the document.
Item = tuple[str, Callable[[], Document]]


def open_documents(
    source: str = "rendered", *, split: str, count: int, seed: int = 0, kind: str | None = None, pictures: bool = True
) -> list[Document]:
    """Open at most `count` documents of a split ("calibration" or "evaluation", or of rendered ones "training").

    source: "rendered", a folder of images (an answer is read from the .txt of the same name), a .pdf, a .jsonl of
    {"image", "prompt", "answer"} with paths relative to the file (an image without a prompt is to be read), a local
    dataset folder, or a Hugging Face dataset id; where a dataset has several splits of its own, one is named behind it
    ("id:validation").
    seed: which documents are drawn. kind: rendered only, one of `render.KINDS` or None for a mix. pictures: every
    document must have one; a .jsonl can be of prompts and answers alone.

    Raises InputError, naming the source or the file, for whatever cannot be read. Every picture is opened once to see
    that it can be, and again when it is asked for; none is kept.
    """
    wanted = _one_of(SPLITS, "split", split)
    if count < 1:
        raise InputError(f"{count} documents asked for: give at least 1")
    if source == "rendered":
        return documents(wanted, count, seed, None if kind is None else _one_of(KINDS, "kind", kind))
    if kind is not None:
        raise InputError(f"kind {kind!r} chooses among rendered documents; {source} has only its own")
    if wanted == "training":
        raise InputError(f"{source}: only rendered documents are for training")
    items = _items(source)
    chosen = [item for item in items if split_of_item(item[0]) == wanted]
    if not chosen:
        raise EmptySplitError(
            f"{source}: none of its {len(items)} documents is for {split}: three of five are for calibration, "
            "two for evaluation; give a larger source"
        )
    Random(f"{split}/{seed}").shuffle(chosen)
    return [_readable(source, make(), pictures) for _, make in chosen[:count]]


def shortfall(source: str, split: Split, found: int, asked: int) -> str:
    """What to say behind the number of documents found, where they are fewer than were asked for."""
    if found >= asked:
        return ""
    other = next(one for one in ("calibration", "evaluation") if one != split)
    return f" instead of {asked} ({source} has no more for {split}, other pages are kept for {other})"


def _readable(source: str, document: Document, pictures: bool) -> Document:
    """The document; InputError now, and not after hours of work, where its picture is damaged or missing."""
    if document.picture is not None:
        document.image  # noqa: B018
    elif pictures:
        raise InputError(f"{source}: {document.name} has no 'image', and a model that sees is to read it; add one")
    return document


def split_of_item(name: str) -> Split:
    """The split of an item by its name: 60 % calibration, 40 % evaluation."""
    fifth = int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()) % 5
    return "calibration" if fifth < 3 else "evaluation"


def _one_of(known: tuple[Name, ...], what: str, given: str) -> Name:
    for name in known:
        if name == given:
            return name
    raise InputError(f"unknown {what} {given!r}: choose one of {', '.join(known)}")


def _items(source: str) -> list[Item]:
    path = Path(source)
    behind = None if path.exists() else re.fullmatch(r"(.*[^:]):([\w.-]+)", source)
    name, split = behind.groups() if behind else (source, None)
    if path.is_dir():
        items = _folder(path) if _images(path) or not _holds_dataset(path) else _dataset(source, None)
    elif behind and Path(name).is_dir() and _holds_dataset(Path(name)):
        items = _dataset(name, split)
    elif path.is_file() and path.suffix.lower() == ".pdf":
        items = _pdf(path)
    elif path.is_file() and path.suffix.lower() == ".jsonl":
        items = _jsonl(path)
    elif path.exists():
        raise InputError(f"{path}: is not a folder, a .pdf or a .jsonl file, give one of these")
    elif path.suffix.lower() in {".pdf", ".jsonl"} or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(
            f"{path}: no such file or folder, give a folder of images, a .pdf, a .jsonl or a dataset, as owner/name"
        )
    else:
        items = _dataset(name, split)
    if not items:
        raise InputError(f"{source}: holds no documents")
    return items


def _holds_dataset(folder: Path) -> bool:
    return any(found for pattern in _DATASET_FILES for found in folder.rglob(pattern))


def _folder(folder: Path) -> list[Item]:
    if not (files := _images(folder)):
        raise InputError(f"{folder}: holds no images, put PNG, JPEG, TIFF or WebP files in it")
    return [(file.name, partial(_image_file, file)) for file in files]


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def _image_file(file: Path) -> Document:
    truth = file.with_suffix(".txt")
    answer = _text(truth).strip() if truth.is_file() else None
    return Document(partial(open_image, file), READ[0], answer, file.name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def open_pictures(path: Path) -> list[tuple[str, Image.Image]]:
    """A picture file, or all pages of a PDF in order, drawn: what an error calls each, and the RGB picture.

    Raises InputError as `open_image` does, and for a PDF that cannot be read or drawn.
    """
    if path.suffix.lower() != ".pdf" or not path.is_file():
        return [(str(path), open_image(path))]
    return [(f"{path}: page {number + 1}", _draw_page(path, number)) for number in range(_pages(path))]


def _pdf(path: Path) -> list[Item]:
    names = [f"{path.name}/{number}" for number in range(1, _pages(path) + 1)]
    return [(name, partial(_pdf_page, path, number, name)) for number, name in enumerate(names)]


def _pages(path: Path) -> int:
    """How many a PDF has."""
    if importlib.util.find_spec("pypdfium2") is None:
        raise InputError(f"{path}: reading PDF files needs pypdfium2, install the extra 'data'")
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(path) as pdf:
            return len(pdf)
    except pypdfium2.PdfiumError as error:
        raise InputError(f"{path}: cannot be read as a PDF ({error}), it may be damaged or encrypted") from error


def _pdf_page(path: Path, number: int, name: str) -> Document:
    return Document(partial(_draw_page, path, number), READ[0], None, name)


def _draw_page(path: Path, number: int) -> Image.Image:
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(path) as pdf:
            image: Image.Image = pdf[number].render(scale=PDF_DPI / 72).to_pil()
    except pypdfium2.PdfiumError as error:
        raise InputError(f"{path}: page {number + 1} cannot be drawn ({error})") from error
    return image.convert("RGB")


def open_questions(path: Path) -> list[tuple[str, Document]]:
    """All lines of a .jsonl of {"image", "prompt"}, in order: where each is, as errors name it, and its document.

    Either of the two may be left out. Raises InputError for a line that is not one; pictures are not opened yet.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file, give a .jsonl of questions")
    questions = [(_line(path, number), _json_document(path, row, number)) for number, row in _json_rows(path)]
    if not questions:
        raise InputError(f"{path}: holds no questions")
    return questions


def _line(path: Path, number: int) -> str:
    return f"{path}: line {number}"


def _jsonl(path: Path) -> list[Item]:
    items: list[Item] = []
    for number, row in _json_rows(path):
        # The picture, however its path is written, decides the split: two questions about it are never apart.
        key = row["prompt"] if row.get("image") is None else posixpath.normpath(row["image"])
        items.append((key, partial(_json_document, path, row, number)))
    return items


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows and the numbers of their lines; a picture without a prompt is to be read, as in a folder."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield number, _json_row(_line(path, number), line)


def _json_row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets a thousand deep
        raise InputError(f"{where} is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError(f'{where} is not an object, write {{"image": ..., "prompt": ..., "answer": ...}}')
    if row.get("prompt") is None and row.get("image") is not None:
        row["prompt"] = READ[0]
    if not isinstance(row.get("prompt"), str):
        raise InputError(f"{where} has no text under 'prompt'")
    for key in ("image", "answer"):
        if not isinstance(row.get(key), str | None):
            raise InputError(f"{where} has an {key!r} that is not text")
    for key in ("prompt", "answer"):
        try:
            (row.get(key) or "").encode()
        except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair, which no tokenizer takes
            raise InputError(f"{where} has half a character under {key!r} ({error.reason}); correct it") from error
    return row


def _json_document(path: Path, row: dict[str, Any], number: int) -> Document:
    prompt, answer = row["prompt"], row.get("answer")
    if row.get("image") is None:
        return Document(None, prompt, answer, f"line/{number}")
    return Document(partial(_json_image, path, row["image"], number), prompt, answer, f"{row['image']}:{number}")


def _json_image(path: Path, image: str, number: int) -> Image.Image:
    try:
        return open_image(path.parent / image)
    except InputError as error:
        raise InputError(f"{_line(path, number)}: {error}") from error


def _dataset(source: str, split: str | None) -> list[Item]:
    """Rows of a Hugging Face dataset, online or local, that have an image column. split: one of its own."""
    if importlib.util.find_spec("datasets") is None:
        raise InputError(f"{source}: no such file or folder, and reading a dataset needs the extra 'data' (datasets)")
    import datasets

    table = _table(source, split)
    if not isinstance(table.features.get("image"), datasets.Image):
        columns = ", ".join(table.column_names)
        raise InputError(f"{source}: has no column 'image' of pictures, its columns are {columns}")
    pictures = table.select_columns("image").cast_column("image", datasets.Image(decode=False))
    texts = table.remove_columns("image")
    # Questions about one page are rows of their own, each with the page: its bytes decide the split.
    keys = (_row_key(cells["image"], number) for number, cells in enumerate(pictures))
    return [(key, partial(_row_document, source, pictures, texts, number)) for number, key in enumerate(keys)]


def _table(source: str, split: str | None) -> Dataset:
    """The one split of a dataset, or the one that is named."""
    import datasets

    saved = any((Path(source) / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))
    try:
        loaded = datasets.load_from_disk(source) if saved else None
        if isinstance(loaded, datasets.Dataset):
            loaded = datasets.DatasetDict({str(loaded.split or "train"): loaded})
        splits = list(loaded) if loaded else datasets.get_dataset_split_names(source)
        if split in splits or (split is None and len(splits) == 1):
            return loaded[split or splits[0]] if loaded else datasets.load_dataset(source, split=split or splits[0])
    except Exception as error:  # a library of many back ends: network, hub, parquet, arrow
        reason = str(error).partition("\n")[0]
        raise InputError(f"{source}: no local folder, and not loaded as a Hugging Face dataset ({reason})") from error
    asked = "has several splits" if split is None else f"has no split {split!r}"
    raise InputError(f"{source}: {asked}, give one of {', '.join(f'{source}:{name}' for name in splits)}")


def _row_key(picture: dict[str, Any] | None, number: int) -> str:
    content = _row_bytes(picture)
    return f"row/{number}" if content is None else hashlib.blake2b(content).hexdigest()


def _row_bytes(picture: dict[str, Any] | None) -> bytes | None:
    """The image file of a row, which a dataset has in itself or beside itself; None where there is none."""
    if picture is None or picture["bytes"] is not None:
        return None if picture is None else picture["bytes"]
    path = Path(picture["path"] or "")
    return path.read_bytes() if path.is_file() else None


def _row_document(source: str, pictures: Dataset, texts: Dataset, number: int) -> Document:
    where = f"{source}: row {number}"
    try:
        cells = texts[number]
    except UnicodeDecodeError as error:
        raise InputError(f"{where} has text that is not UTF-8 ({error})") from error
    prompt = next((name for name in _PROMPTS if name in cells), None)
    answer = next((name for name in _ANSWERS if name in cells), None)
    asked, truths = READ[0] if prompt is None else cells[prompt], None if answer is None else cells[answer]
    if not isinstance(asked, str):
        raise InputError(f"{where} has no text in its column {prompt!r}")
    if not isinstance(truths, list):
        truths = [] if truths is None else [truths]
    if not all(isinstance(truth, str) for truth in truths):
        raise InputError(f"{where} has an answer that is not text in its column {answer!r}")
    first, *others = truths or [None]
    return Document(partial(_row_image, pictures, number, where), asked, first, f"row/{number}", tuple(others))


def _row_image(pictures: Dataset, number: int, where: str) -> Image.Image:
    content = _row_bytes(pictures[number]["image"])
    if content is None:
        raise InputError(f"{where} has no picture in its column 'image'")
    return read_image(io.BytesIO(content), where)
