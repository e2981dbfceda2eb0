"""Open image files, and refuse those that would be read wrongly without an error."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from calib_data.levels import prepare_samples, to_8_bits
from calib_data.pages import seek_single_picture
from console.errors import InputError, naming
from console.files import existing, refuse_special

if TYPE_CHECKING:
    from typing import BinaryIO

SUFFIXES = {".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Of the image files in a folder of documents."""

_OF_SYSTEMS = {"#recycle", "$recycle.bin", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "thumbs.db"}


def open_image(path: Path | str) -> Image.Image:
    """Read an image file completely, turned upright, as RGB. Its name may be written in any Unicode form.

    Raises InputError, naming the file, if it cannot be opened or decoded, has several pages or frames, has samples of
    unknown range, or exceeds Pillow's limit (about 89 million pixels).
    """
    path = existing(Path(path))
    refuse_special(path, "give the path of an image file")
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character or half of a surrogate pair
        reason = str(error.strerror if isinstance(error, OSError) else error).lower()
        inline = re.search("(^|/)data:[^,]*,", str(path))
        advice = "save what a data: URI holds as a file" if inline else "give the path of an image file"
        raise InputError(f"{path}: {reason}; {advice}") from error
    with file:
        return read_image(file, str(path))


def visible_paths(folder: Path) -> list[Path]:
    """What users put into a folder, by name."""
    return sorted(path for path in folder.iterdir() if is_of_user(path.name))


def is_of_user(name: str) -> bool:
    """Whether a file or folder is a user's; not what systems leave, as .DS_Store, ._scan.png or Thumbs.db."""
    return not name.startswith(".") and name.lower() not in _OF_SYSTEMS


def read_image(file: BinaryIO, name: str) -> Image.Image:
    """Read the bytes of an image file as `open_image` does. name: what an InputError calls it."""
    if not file.read(1):
        raise InputError(f"{name}: is not an image but empty; copy or download it again")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of a damaged file is said by an error
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with naming(name), _opened(file) as image:
                seek_single_picture(image)
                prepare_samples(image)
                ImageOps.exif_transpose(image, in_place=True)  # a copy would be one more picture in memory
                return to_rgb(image)
    except InputError:
        raise
    except UnidentifiedImageError as error:  # its own text has the address of an object
        raise InputError(
            f"{name}: is not an image that Pillow reads, or has samples of an unusual kind; "
            "save it as PNG, JPEG, TIFF or WebP with 8 or 16 bits"
        ) from error
    except Exception as error:  # decoders raise almost anything on damaged files
        raise InputError(f"{name}: cannot be read as an image ({error})") from error


def _opened(file: BinaryIO) -> Image.Image:
    """Open an image file. Checksums of a PNG are compared first: Pillow would draw rows that are lost black."""
    image = Image.open(file)
    if image.format == "PNG":
        image.verify()
        image = Image.open(file)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB as transformers' image processors do: transparent pixels become white.

    Samples of 16 bits are scaled, which those processors clip. Raises InputError as `to_8_bits` does.
    """
    image = to_8_bits(image)
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way to RGB
    if not {"A", "a"} & set(image.getbands()) and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
