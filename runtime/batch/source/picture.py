"""Opens an image file at a path or URL."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from calib_data.images import open_image, read_image

if TYPE_CHECKING:
    from PIL import Image

    from runtime.batch.storage import Storage


def open_picture(storage: Storage, name: str) -> Image.Image:
    """Read an image as RGB. At a URL that is one request. Raises InputError, naming the path or URL."""
    if storage.folder is not None:
        return open_image(storage.local(name))
    return read_image(io.BytesIO(storage.read(name)), storage.place(name))
