"""The rows of a Hugging Face dataset that has a column `image`, online or local."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib_data.document import READ_TEXT, Document
from calib_data.images import read_image
from calib_data.sources.fields import ANSWERS, PROMPTS, REASONINGS, question_of, text_of, texts_of
from console.errors import InputError, require_package
from console.progress import say_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset
    from PIL import Image

_SAVED = ("dataset_dict.json", "dataset_info.json")  # what `save_to_disk` writes
_FILES = ("*.parquet", "*.arrow", *_SAVED)


def holds_dataset(folder: Path) -> bool:
    """Whether a folder has files of a dataset, in folders below it too. Hidden ones are none."""
    found = (path.relative_to(folder) for pattern in _FILES for path in folder.rglob(pattern))
    return any(not any(part.startswith(".") for part in path.parts) for path in found)


def dataset_documents(source: str, split: str | None) -> list[Callable[[], Document]]:
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
    kinds = (PROMPTS, ANSWERS, REASONINGS)
    read = tuple(next((name for name in names if name in texts.column_names), None) for names in kinds)
    if unread := [column for column in texts.column_names if column not in read]:
        say_once(f"{source}: columns that are not read: {', '.join(map(repr, unread))}")
    return [partial(_document, source, pictures, texts, number, read) for number in range(len(table))]


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


def _picture_bytes(picture: dict[str, Any] | None) -> bytes | None:
    """The image file of a row, stored in the table or next to it; None if there is none."""
    if picture is None or picture["bytes"] is not None:
        return None if picture is None else picture["bytes"]
    path = Path(picture["path"] or "")
    return path.read_bytes() if path.is_file() else None


def _document(source: str, pictures: Dataset, texts: Dataset, number: int, columns: tuple[str | None, ...]) -> Document:
    place, (asked, answered, reasoned) = f"{source}: row {number}", columns
    try:
        row = texts[number]
        prompt = READ_TEXT if asked is None else question_of(row, asked)
        if prompt is None:
            raise ValueError(f"no text in its column {asked!r}")
        answers, reasoning = texts_of(row, answered), text_of(row, reasoned)
    except ValueError as error:  # also of strings in Arrow that are not UTF-8
        raise InputError(f"{place} is not valid: {error}") from error
    opener = partial(_open_image, pictures, number, place)
    return Document(opener, prompt, next(iter(answers), None), f"row/{number}", tuple(answers[1:]), reasoning)


def _open_image(pictures: Dataset, number: int, place: str) -> Image.Image:
    content = _picture_bytes(pictures[number]["image"])
    if content is None:
        raise InputError(f"{place} has no picture in its column 'image'")
    return read_image(io.BytesIO(content), place)
