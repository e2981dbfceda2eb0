"""The rows of a Hugging Face dataset that has a column `image`, online or local."""

from __future__ import annotations

import hashlib
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib_data.document import READ_TEXT, Document
from calib_data.images import read_image
from calib_data.sources.entry import Entry
from console.errors import InputError, require_package

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

_SAVED = ("dataset_dict.json", "dataset_info.json")  # what `save_to_disk` writes
_FILES = ("*.parquet", "*.arrow", *_SAVED)
_PROMPTS = ("prompt", "question", "query")
_ANSWERS = ("answer", "answers", "text", "ground_truth")


def holds_dataset(folder: Path) -> bool:
    """Whether a folder has files of a dataset, in folders below it too. Hidden ones are none."""
    found = (path.relative_to(folder) for pattern in _FILES for path in folder.rglob(pattern))
    return any(not any(part.startswith(".") for part in path.parts) for path in found)


def dataset_entries(source: str, split: str | None) -> list[Entry]:
    """All rows. split: one of the dataset's own splits; None if it has a single one.

    Raises InputError if there is no such dataset or split, or it has no column `image` of pictures.
    """
    require_package("datasets", "data", f"{source}: no such file or folder, and reading a dataset")
    import datasets

    table = _load(source, split)
    if not isinstance(table.features.get("image"), datasets.Image):
        columns = ", ".join(table.column_names)
        raise InputError(f"{source}: has no column 'image' of pictures, its columns are {columns}")
    pictures = table.select_columns("image").cast_column("image", datasets.Image(decode=False))
    texts = table.remove_columns("image")
    # Questions about one page are rows of their own, each with the page: its bytes decide the split.
    keys = (_key(row["image"], number) for number, row in enumerate(pictures))
    return [Entry(key, partial(_document, source, pictures, texts, number)) for number, key in enumerate(keys)]


def _load(source: str, split: str | None) -> Dataset:
    """The single split of a dataset, or the one that is named."""
    import datasets

    try:
        saved = any((Path(source) / name).exists() for name in _SAVED)
        loaded = datasets.load_from_disk(source) if saved else None
        if isinstance(loaded, datasets.Dataset):
            loaded = datasets.DatasetDict({str(loaded.split or "train"): loaded})
        splits = list(loaded) if loaded else datasets.get_dataset_split_names(source)
        if split in splits or (split is None and len(splits) == 1):
            return loaded[split or splits[0]] if loaded else datasets.load_dataset(source, split=split or splits[0])
    except Exception as error:  # a library of many back ends: network, hub, parquet, arrow
        reason = str(error).partition("\n")[0]
        raise InputError(f"{source}: no local folder, and not loaded as a Hugging Face dataset ({reason})") from error
    problem = "has several splits" if split is None else f"has no split {split!r}"
    raise InputError(f"{source}: {problem}, give one of {', '.join(f'{source}:{name}' for name in splits)}")


def _key(picture: dict[str, Any] | None, number: int) -> str:
    content = _picture_bytes(picture)
    return f"row/{number}" if content is None else hashlib.blake2b(content).hexdigest()


def _picture_bytes(picture: dict[str, Any] | None) -> bytes | None:
    """The image file of a row, stored in the table or next to it; None if there is none."""
    if picture is None or picture["bytes"] is not None:
        return None if picture is None else picture["bytes"]
    path = Path(picture["path"] or "")
    return path.read_bytes() if path.is_file() else None


def _document(source: str, pictures: Dataset, texts: Dataset, number: int) -> Document:
    place = f"{source}: row {number}"
    try:
        prompt, answers = _prompt_and_answers(texts[number])
    except ValueError as error:  # also of strings in Arrow that are not UTF-8
        raise InputError(f"{place} is not valid: {error}") from error
    first = answers[0] if answers else None
    opener = partial(_open_image, pictures, number, place)
    return Document(opener, prompt, first, f"row/{number}", tuple(answers[1:]))


def _prompt_and_answers(row: dict[str, Any]) -> tuple[str, list[str]]:
    """Take them from whichever known columns there are. Raises ValueError if one is not text."""
    asked = next((column for column in _PROMPTS if column in row), None)
    answered = next((column for column in _ANSWERS if column in row), None)
    prompt = READ_TEXT if asked is None else row[asked]
    answers = None if answered is None else row[answered]
    if not isinstance(answers, list):
        answers = [] if answers is None else [answers]
    if not isinstance(prompt, str):
        raise ValueError(f"no text in its column {asked!r}")
    if not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"an answer that is not text in its column {answered!r}")
    return prompt, answers


def _open_image(pictures: Dataset, number: int, place: str) -> Image.Image:
    content = _picture_bytes(pictures[number]["image"])
    if content is None:
        raise InputError(f"{place} has no picture in its column 'image'")
    return read_image(io.BytesIO(content), place)
