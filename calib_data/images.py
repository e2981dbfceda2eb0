"""Open image files, and refuse those that would be read wrongly without an error."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from console.errors import InputError

if TYPE_CHECKING:
    from typing import BinaryIO

_ANIMATED = {"AVIF", "GIF", "PNG", "WEBP"}  # not MPO, a phone's JPEG: its further pictures are previews


def open_image(path: Path | str) -> Image.Image:
    """Read an image file completely, turned upright, as RGB.

    Raises InputError, naming the file, if it cannot be opened or decoded, has several pages or frames, has 32-bit
    pixels, or exceeds Pillow's limit (about 89 million pixels).
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character or half of a surrogate pair
        reason = str(error.strerror if isinstance(error, OSError) else error).lower()
        raise InputError(f"{path}: {reason}; give the path of an image file") from error
    with file:
        return read_image(file, str(path))


def read_image(file: BinaryIO, name: str) -> Image.Image:
    """Read the bytes of an image file as `open_image` does. name: what an InputError calls it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                _require_single_picture(image, name)
                ImageOps.exif_transpose(image, in_place=True)  # a copy would be one more picture in memory
                return to_rgb(_to_8_bits(image, name))
    except InputError:
        raise
    except UnidentifiedImageError as error:  # its own text has the address of an object
        raise InputError(f"{name}: is not an image that Pillow reads, give a PNG, JPEG, TIFF or WebP file") from error
    except Exception as error:  # decoders raise almost anything on damaged files
        raise InputError(f"{name}: cannot be read as an image ({error})") from error


def _require_single_picture(image: Image.Image, name: str) -> None:
    """Refuse several pages or frames: Pillow would read the first and say nothing."""
    count = getattr(image, "n_frames", 1)
    if image.format == "TIFF" and count > 1:
        raise InputError(f"{name}: has {count} pages; save one file a page, or a PDF")
    if image.format in _ANIMATED and count > 1:
        raise InputError(f"{name}: has {count} frames; save one, or give `runtime generate --video` a folder of them")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB as transformers' image processors do: transparent pixels become white."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit grey to 8 bits: Pillow's own conversion clips at 255, which turns such a scan into a white page."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(f"{name}: has 32-bit pixels of unknown range, save it with 8 or 16 bits")
    return image
