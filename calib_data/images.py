"""Opening the image files that users bring."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from console.errors import InputError

if TYPE_CHECKING:
    from typing import BinaryIO

_ANIMATED = {"AVIF", "GIF", "PNG", "WEBP"}  # not MPO, a phone's JPEG: there what follows is no picture of its own


def open_image(path: Path | str) -> Image.Image:
    """Read an image file whole and upright, as RGB.

    Raises InputError, naming the file, when it is missing, a folder, empty, not an image, damaged, a TIFF of several
    pages, an animation, or so large that Pillow takes it for a decompression bomb (about 89 million pixels).
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file, give the path of an image")
    if not path.is_file():
        raise InputError(f"{path}: is not a file, give the path of an image")
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}), check who may read it") from error
    with file:
        return read_image(file, str(path))


def read_image(file: BinaryIO, name: str) -> Image.Image:
    """Read the bytes of an image file as `open_image` does. name: what an InputError calls it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                _require_one(image, name)
                ImageOps.exif_transpose(image, in_place=True)  # a copy would be one more picture in memory
                return to_rgb(_to_8_bits(image, name))
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"{(Image.MAX_IMAGE_PIXELS or 0) // 10**6} million"
        raise InputError(f"{name}: has more than {limit} pixels, scale it down first") from error
    except UnidentifiedImageError as error:
        empty = file.seek(0, io.SEEK_END) == 0
        reason = "is empty" if empty else "is not an image of a format that Pillow reads"
        raise InputError(f"{name}: {reason}, give a PNG, JPEG, TIFF or WebP file") from error
    except Exception as error:  # decoders raise almost anything on damaged files
        raise InputError(f"{name}: cannot be read as an image ({error}), it may be damaged") from error


def _require_one(image: Image.Image, name: str) -> None:
    """Refuse what only the first picture would be read of."""
    count = getattr(image, "n_frames", 1)
    if image.format == "TIFF" and count > 1:
        raise InputError(f"{name}: has {count} pages; save one file a page, or a PDF")
    if image.format in _ANIMATED and count > 1:
        raise InputError(f"{name}: has {count} frames; save one, or give `runtime generate --video` a folder of them")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB as transformers' image processors do: what is transparent shows white paper."""
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
