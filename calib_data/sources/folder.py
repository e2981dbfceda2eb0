"""A folder of images; the .txt file of the same name holds the answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from calib_data.document import READ_TEXT, Document
from calib_data.images import SUFFIXES, open_image, visible_paths
from console.errors import InputError
from console.files import read_text
from console.progress import say_once
from console.text import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def folder_documents(folder: Path) -> list[Callable[[], Document]]:
    """The images of a folder by name; hidden files are passed over.

    Says on stderr which images have no true text where others have one, which texts have no image, and what else is not
    read, folders below it among them. Raises InputError where two texts could be an image's.
    """
    files = sorted(visible_paths(folder), key=lambda file: canonical(file.name))
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    texts = [file for file in files if file.suffix.lower() == ".txt" and file.is_file()]
    truths = _truths(images, texts)
    _say_unpaired(folder, images, texts, truths)
    if images and (others := [file.name for file in files if file not in {*images, *texts}]):
        say_once(f"{folder}: {len(others)} files and folders are no images and are not read, the first is {others[0]}")
    return [partial(_document, image, truths.get(image)) for image in images]


def _truths(images: Sequence[Path], texts: Sequence[Path]) -> dict[Path, Path]:
    """The true text of each image that has one: `scan.txt`, or else `SCAN.TXT` if it is no other image's."""
    exact = {text.stem: text for text in texts if text.suffix == ".txt"}
    stems = {image.stem for image in images}
    similar: dict[str, list[Path]] = {}
    for text in texts:
        if exact.get(text.stem) != text or text.stem not in stems:
            similar.setdefault(_folded(text.stem), []).append(text)
    truths = {}
    for image in images:
        found = [exact[image.stem]] if image.stem in exact else similar.get(_folded(image.stem), [])
        if len(found) > 1:
            names = " and ".join(text.name for text in found)
            raise InputError(f"{image}: its true text may be {names}; keep one, named {image.stem}.txt")
        if found:
            truths[image] = found[0]
    return truths


def _folded(stem: str) -> str:
    """The same for names that differ in case, or in how Hangul and accents are composed."""
    return canonical(stem).casefold()


def _say_unpaired(folder: Path, images: Sequence[Path], texts: Sequence[Path], truths: dict[Path, Path]) -> None:
    unread, unanswered = [image for image in images if image not in truths], set(texts) - set(truths.values())
    if truths and unread:
        say_once(f"{folder}: {len(unread)} of {len(images)} images have no .txt, the first is {unread[0].name}")
    if images and unanswered:
        first = next(text.name for text in texts if text in unanswered)
        say_once(f"{folder}: {len(unanswered)} of {len(texts)} .txt files have no image, the first is {first}")


def _document(image: Path, truth: Path | None) -> Document:
    answer = None if truth is None else read_text(truth, "save it as UTF-8 text").strip()
    return Document(partial(open_image, image), READ_TEXT, answer, image.name)
