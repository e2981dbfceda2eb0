"""Bring the samples of an image to 8 bits: Pillow's own conversion clips at 255, which makes a 16-bit scan white."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImagePalette

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

# tags of TIFF 6.0
_BITS, _PHOTOMETRIC, _FILL_ORDER, _PLANAR, _COLOUR_MAP, _SAMPLE_FORMAT = 258, 262, 266, 284, 320, 339
_WHITE_IS_ZERO, _PLANES, _SIGNED = 0, 2, 2
_FULL_RANGE = {"PNG", "TIFF", "JPEG2000", "PPM", None}  # formats whose 16 bits are 0 … 65535; None: made in memory
_SIZ, _BITS_IN_SIZ, _HEADER = b"\xff\x4f\xff\x51", 42, 1 << 20  # JPEG 2000: ITU-T T.800, A.5.1
_STEPS = {"L;2": 85, "L;4": 17}  # levels between two samples of a PNG of 2 or 4 bits


def prepare_samples(image: Image.Image) -> None:
    """Check an opened file before its pixels are loaded, and scale its transparent colour as they will be.

    Raises InputError for a TIFF or JPEG 2000 file that Pillow would read wrongly without an error.
    """
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        _refuse_misread(image, tags)
        _use_8_bit_palette(image, tags)
    if image.format == "JPEG2000":
        _refuse_few_bits(getattr(image, "fp", None))
    colour = image.info.get("transparency")
    tiles = getattr(image, "tile", None)  # none once the pixels are loaded
    rawmode = tiles[0].args if image.format == "PNG" and tiles else None
    if isinstance(colour, int) and rawmode in _STEPS:
        image.info["transparency"] = colour * _STEPS[rawmode]
    elif isinstance(colour, tuple) and rawmode == "RGB;16B":
        image.info["transparency"] = tuple(sample >> 8 for sample in colour)


def to_8_bits(image: Image.Image) -> Image.Image:
    """The grey levels that the 8-bit rendering of an image has; `image` itself if its samples have 8 bits.

    Raises InputError for samples whose black and white are not known: signed, float and 32-bit ones.
    """
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if image.mode not in ("I", "F") and not sixteen:
        return image
    if not sixteen or image.format not in _FULL_RANGE:
        raise InputError("has signed, float or 32-bit pixels of unknown range; save it with 8 or 16 bits")
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    samples = np.asarray(image)
    levels = (samples >> (tags.get(_BITS, (16,))[0] - 8)).astype(np.uint8)
    if tags and tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO:
        levels = 255 - levels  # Pillow inverts up to 8 bits only
    if (transparent := image.info.get("transparency")) is not None:
        levels[samples == transparent] = 255
    return Image.fromarray(levels)


def _refuse_misread(image: Image.Image, tags: Mapping[int, Any]) -> None:
    """Refuse signed bytes, which become unsigned, and planes: Pillow takes the letters of a mode's name as theirs."""
    if image.mode == "L" and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise InputError("has signed samples of unknown range; save it with unsigned ones")
    if tags.get(_PLANAR) != _PLANES:
        return
    bits = tags.get(_BITS, (1,))
    bytes_apart = len(bits) > 1 and set(bits) == {8} and tags.get(_FILL_ORDER, 1) == 1
    by_libtiff = image.info.get("compression") != "raw"
    if image.mode in ("LA", "La", "PA", "LAB") or not (by_libtiff or bytes_apart):
        raise InputError(
            "has its samples in separate planes (PlanarConfiguration 2) of a kind not read; save it as PNG"
        )


def _use_8_bit_palette(image: Image.Image, tags: Mapping[int, Any]) -> None:
    """Take a colour map of 8-bit levels as it is, as libtiff does; Pillow divides it by 256, and all is black."""
    levels = tags.get(_COLOUR_MAP, ())
    if image.mode == "P" and 0 < max(levels, default=0) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(levels))


def _refuse_few_bits(file: BinaryIO | None) -> None:
    """Refuse JPEG 2000 of less than 8 bits, which Pillow shifts: white would be grey."""
    if file is None:  # loaded already
        return
    position = file.tell()
    file.seek(0)
    header = file.read(_HEADER)
    file.seek(position)
    siz = header.find(_SIZ)
    if siz >= 0 and (bits := (header[siz + _BITS_IN_SIZ] & 0x7F) + 1) < 8:
        raise InputError(f"is JPEG 2000 of {bits} bits a sample, which Pillow reads too dark; save it as PNG")
