"""Turns an image into patches for the vision encoder, bit for bit as transformers' Qwen2-VL processor does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as typed

from calib_data.images import to_rgb
from console.errors import InputError, naming
from console.files import RESTORE, Size, read_object, to_type

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MAX_ASPECT_RATIO = 200
_Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class ImageSettings:
    """How a model's images are prepared: what matters of its image processor's settings."""

    patch_size: int
    """Pixels along a patch."""
    temporal_patch_size: int
    """Frames that share a patch."""
    merge_size: int
    """Patches along the block that becomes one image token."""
    min_pixels: int
    """Lower bound of the resized area."""
    max_pixels: int
    """Upper bound of the resized area."""
    mean: tuple[float, float, float]
    """Of each channel, on the scale of rescaled values."""
    std: tuple[float, float, float]
    """Of each channel, likewise."""
    rescale_factor: float = 1 / 255
    """Factor of pixel levels."""
    resample: int = Image.Resampling.BICUBIC
    """Number of Pillow's filter."""

    @classmethod
    def from_folder(cls, folder: Path) -> ImageSettings:
        """Read the settings from where transformers does. Raises InputError for a missing or unusable file."""
        path, config = processor_config(folder, "image_processor")
        return cls.from_config(config, path)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], path: Path) -> ImageSettings:
        """Read the settings from the content of a file. path: named in errors."""
        file = to_type(_ImageProcessor, config, path)
        if problem := _unusable(file):
            raise InputError(f"{path}: unusable image settings ({problem}); {RESTORE}")
        return cls(
            patch_size=file.patch_size,
            temporal_patch_size=file.temporal_patch_size,
            merge_size=file.merge_size,
            min_pixels=file.smallest or 0,
            max_pixels=file.largest or 0,
            mean=file.image_mean,
            std=file.image_std,
            rescale_factor=file.rescale_factor,
            resample=file.resample,
        )


@typed(config=ConfigDict(strict=True, allow_inf_nan=False))
class _Bounds:
    """`size` of an image processor; other processors have other keys."""

    shortest_edge: Size | None = None
    """Lower bound of the resized area, in pixels."""
    longest_edge: Size | None = None
    """Upper bound."""


@typed(config=ConfigDict(strict=True, allow_inf_nan=False))
class _ImageProcessor:
    """What is read of an image processor's settings, as its file has them."""

    patch_size: Size
    temporal_patch_size: Size
    merge_size: Size
    image_mean: tuple[float, float, float]
    image_std: tuple[_Positive, _Positive, _Positive]
    rescale_factor: _Positive = 1 / 255
    resample: Image.Resampling = Image.Resampling.BICUBIC
    size: _Bounds | None = None
    min_pixels: Size | None = None
    """Older files have it here."""
    max_pixels: Size | None = None
    """The same."""
    do_resize: bool | None = True
    do_rescale: bool | None = True
    do_normalize: bool | None = True
    do_convert_rgb: bool | None = True

    @property
    def smallest(self) -> int | None:
        """Lower bound of the resized area; the older setting goes first, as in transformers."""
        return self.min_pixels or (self.size.shortest_edge if self.size else None)

    @property
    def largest(self) -> int | None:
        """Upper bound."""
        return self.max_pixels or (self.size.longest_edge if self.size else None)


def _unusable(file: _ImageProcessor) -> str | None:
    """Say what rules an image processor out; None where it is supported."""
    for step in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if getattr(file, step) is False:
            return f"{step} is false; only processors with every step are supported"
    for edge, bound in (("shortest_edge", file.smallest), ("longest_edge", file.largest)):
        if bound is None:
            return f"size.{edge} is missing"
    assert file.smallest is not None
    assert file.largest is not None
    if file.largest < max(file.smallest, (file.patch_size * file.merge_size) ** 2):
        return f"at most {file.largest} pixels are too few for an image"
    return None


def processor_config(folder: Path, part: str, *names: str) -> tuple[Path, dict[str, Any]]:
    """Find the settings of one processor as transformers 5 does. Returns their file and its content.

    They are `part` of processor_config.json, where all processors are saved together; else in the first of `names` that
    exists; else in preprocessor_config.json.
    """
    shared = folder / "processor_config.json"
    if shared.exists() and isinstance(config := read_object(shared).get(part), dict):
        return shared, config
    path = next((folder / name for name in names if (folder / name).exists()), folder / "preprocessor_config.json")
    return path, read_object(path)


def preprocess(
    image: Image.Image, settings: ImageSettings, name: str = "image"
) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """Turn an image of any mode into patches and their grid.

    Returns patches [P, 3 * temporal_patch_size * patch_size^2] float32 and grid (1, rows, columns), P = rows * columns.
    Merge blocks come in raster order, the patches of a block together. The image is repeated in all temporal slots.
    Raises InputError as `image_grid` and `to_rgb` do.
    """
    rows, columns = image_grid(image.height, image.width, settings, name)
    with naming(name):
        return to_patches([image], rows, columns, settings), (1, rows, columns)


def image_grid(height: int, width: int, settings: ImageSettings, name: str = "image") -> tuple[int, int]:
    """Rows and columns of patches of an image of height x width pixels.

    Raises InputError, naming `name`, for an image more than 200 times longer than wide.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise InputError(
            f"{name}: {width} x {height} pixels, one side is more than {MAX_ASPECT_RATIO} times the other; crop it"
        )
    height, width = smart_resize(height, width, settings)
    return height // settings.patch_size, width // settings.patch_size


def to_patches(frames: Sequence[Image.Image], rows: int, columns: int, settings: ImageSettings) -> NDArray[np.float32]:
    """Resize frames that share patches and cut them: [rows * columns, ...]. The last frame fills empty slots."""
    return cut([resize(frame, rows, columns, settings) for frame in frames], settings)


def resize(frame: Image.Image, rows: int, columns: int, settings: ImageSettings) -> NDArray[np.uint8]:
    """Resize a picture of any mode to rows x columns patches: [height, width, 3] uint8."""
    size = columns * settings.patch_size, rows * settings.patch_size
    return np.asarray(to_rgb(frame).resize(size, Image.Resampling(settings.resample)))


def cut(frames: Sequence[NDArray[np.uint8]], settings: ImageSettings) -> NDArray[np.float32]:
    """Cut resized frames that share patches: [rows * columns, ...]. The last frame fills empty slots."""
    patches = _patches(frames, settings)
    return patches.reshape(-1, math.prod(patches.shape[2:]))


def smart_resize(height: int, width: int, settings: ImageSettings) -> tuple[int, int]:
    """Choose a size (height, width) in whole merge blocks, of an area within bounds, close to the aspect ratio."""
    block = settings.patch_size * settings.merge_size
    new_height, new_width = round(height / block) * block, round(width / block) * block
    if new_height * new_width > settings.max_pixels:
        shrink = math.sqrt(height * width / settings.max_pixels)
        new_height = max(block, math.floor(height / shrink / block) * block)
        new_width = max(block, math.floor(width / shrink / block) * block)
    elif new_height * new_width < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (height * width))
        new_height = math.ceil(height * grow / block) * block
        new_width = math.ceil(width * grow / block) * block
    return new_height, new_width


def _patches(frames: Sequence[NDArray[np.uint8]], settings: ImageSettings) -> NDArray[np.float32]:
    """Cut frames [height, width, 3] uint8 into [block rows, columns * m * m, 3, t, p * p] float32, normalised.

    Bytes are reordered before they become floats, which are four times as large. Working on one row of blocks and one
    channel at a time keeps intermediate values in the CPU's cache.
    """
    merge, patch = settings.merge_size, settings.patch_size
    rows, columns = frames[0].shape[0] // (merge * patch), frames[0].shape[1] // (merge * patch)
    patches = np.empty((rows, columns * merge**2, 3, settings.temporal_patch_size, patch**2), np.float32)
    levels = _normalized_levels(settings)
    for slot, pixels in enumerate(frames):
        blocks = pixels.reshape(rows, merge, patch, columns, merge, patch, 3).transpose(0, 6, 3, 1, 4, 2, 5)
        for row, out in zip(np.ascontiguousarray(blocks).reshape(rows, 3, -1, 1, patch**2), patches, strict=True):
            for channel, values in enumerate(levels):
                out[:, channel, slot:] = values.take(row[channel])
    return patches


def _normalized_levels(settings: ImageSettings) -> NDArray[np.float32]:
    """Normalised value of each of the 256 pixel levels in each channel, [3, 256] float32.

    Rescaled in float64, rounded to float32, then normalised in float32: transformers rounds in this order.
    """
    rescaled = (np.arange(256, dtype=np.float64) * settings.rescale_factor).astype(np.float32)
    mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)
    return (rescaled - mean[:, None]) / std[:, None]
