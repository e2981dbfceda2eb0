"""Find the one picture of an image file, and refuse a file of several."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from PIL import Image

_ONE_PICTURE = {"MPO", "PSD"}  # a phone's JPEG with previews behind it; a composite with its layers
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _PHOTOMETRIC, _SUB_IFDS = 254, 255, 262, 330  # tags of TIFF 6.0
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_OLD_REDUCED = 2  # value of SubfileType
_MASK_PHOTOMETRIC = 4


def seek_single_picture(image: Image.Image) -> None:
    """Move to the only picture of an opened file: thumbnails and masks of a TIFF are none.

    Raises InputError for several pages or frames: Pillow would read the first and say nothing.
    """
    if image.format == "TIFF":
        _seek_full_page(image)
    elif image.format not in _ONE_PICTURE and (frames := getattr(image, "n_frames", 1)) > 1:
        raise InputError(f"has {frames} frames; save one, or give `runtime generate --video` a folder of them")


def _seek_full_page(image: Image.Image) -> None:
    pages = [_is_preview(tags) for tags in _directories(image)]
    full = [number for number, preview in enumerate(pages) if not preview]
    if len(full) > 1 or (not full and len(pages) > 1):
        raise InputError(f"has {len(full) or len(pages)} pages; save one file a page, or a PDF")
    image.seek(full[0] if full else 0)
    if not full and _SUB_IFDS in getattr(image, "tag_v2", {}):  # a camera's raw file
        raise InputError("has a preview of a picture that Pillow does not read; save the picture as PNG or JPEG")


def _directories(image: Image.Image) -> Iterator[Mapping[int, Any]]:
    """The tags of each page. `n_frames` would fail at a page of samples that Pillow does not read, as a mask has."""
    for number in count():
        try:
            image.seek(number)
        except EOFError:
            return
        except SyntaxError:  # raised after the tags are read
            pass
        yield getattr(image, "tag_v2", {})


def _is_preview(tags: Mapping[int, Any]) -> bool:
    """Whether a page of a TIFF is a smaller copy or a transparency mask of another."""
    reduced = tags.get(_NEW_SUBFILE_TYPE, 0) & (_REDUCED | _MASK) or tags.get(_SUBFILE_TYPE) == _OLD_REDUCED
    return bool(reduced) or tags.get(_PHOTOMETRIC) == _MASK_PHOTOMETRIC
