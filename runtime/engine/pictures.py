"""Images and videos of a prompt: resized when a request is made, encoded when its prompt is read."""

from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from console.errors import naming
from runtime.inputs.images import cut, image_grid, resize
from runtime.inputs.video import video_grid, video_patches
from runtime.prompt import embed_patches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL import Image

    from runtime.exported import ExportedModel
    from runtime.inputs.video import Video
    from runtime.prompt import PromptInputs

CACHE_BYTES = 1 << 30
"""Embeddings that are kept for later requests: 12 images of the largest size at 33 B."""
Patches = tuple["NDArray[np.float32]", tuple[int, int, int]]
"""Patches [P, ...] and their grid (frames, rows, columns)."""


@dataclass(frozen=True)
class Picture:
    """One image or video of a prompt."""

    token: int
    """Id of its placeholder."""
    tokens: int
    """Placeholders, one for each embedding."""
    digest: bytes
    """Hash of its pixels; random for a video, so that no two are the same."""
    source: NDArray[np.uint8] | Video
    """The resized pixels of an image [height, width, 3]; they are 20 times smaller than its patches."""

    def calls(self, model: ExportedModel) -> Iterator[Patches]:
        """Cut it into patches for one call of the vision encoder after another."""
        if isinstance(self.source, np.ndarray):
            settings, (height, width, _) = model.image_settings, self.source.shape
            grid = (1, height // settings.patch_size, width // settings.patch_size)
            return iter([(cut([self.source], settings), grid)])
        return video_patches(self.source, model.video_settings)


def open_pictures(model: ExportedModel, inputs: PromptInputs) -> list[Picture]:
    """Resize and hash the images and videos of a prompt, images first. Raises InputError as `prompt_inputs` does."""
    images = [_image(model, image, name) for image, name in zip(inputs.images, inputs.names, strict=True)]
    return images + [_video(model, video) for video in inputs.videos]


def _image(model: ExportedModel, image: Image.Image, name: str) -> Picture:
    settings, token = model.image_settings, model.chat.image_token_id
    assert token is not None
    rows, columns = image_grid(image.height, image.width, settings, name)
    with naming(name):
        pixels = resize(image, rows, columns, settings)
    digest = hashlib.blake2b(pixels.tobytes() + str(pixels.shape).encode(), digest_size=16).digest()
    return Picture(token, rows * columns // settings.merge_size**2, digest, pixels)


def _video(model: ExportedModel, video: Video) -> Picture:
    settings, token = model.video_settings, model.chat.video_token_id
    assert token is not None
    tokens = math.prod(video_grid(video, settings)) // settings.image.merge_size**2
    return Picture(token, tokens, os.urandom(16), video)


def content_ids(ids: NDArray[np.int64], pictures: list[Picture]) -> NDArray[np.int64]:
    """What a prompt says at each position: token ids [T], and for placeholders negative numbers that their pixels give.

    Two prompts whose numbers agree up to a position have the same keys and values there.
    """
    content = ids.copy()
    for token in {picture.token for picture in pictures}:
        numbers = [_numbers(picture) for picture in pictures if picture.token == token]
        content[ids == token] = np.concatenate(numbers)
    return content


def _numbers(picture: Picture) -> NDArray[np.int64]:
    first = int.from_bytes(picture.digest[:7], "little")
    return -1 - first - np.arange(picture.tokens)


class VisionCache:
    """Runs the vision encoder on a prompt's pictures, and keeps their embeddings, the latest used, up to a size."""

    def __init__(self, model: ExportedModel, limit: int = CACHE_BYTES) -> None:
        self._model, self._limit = model, limit
        self._kept: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self.hits = 0
        """Pictures whose embeddings were kept."""
        self.misses = 0
        """Pictures that were encoded."""

    def encode(self, picture: Picture) -> Iterator[NDArray[np.float32] | None]:
        """Yield None after each call of the encoder but the last, then the embeddings [tokens, H]."""
        if picture.digest in self._kept:
            self.hits += 1
            self._kept.move_to_end(picture.digest)
            yield self._kept[picture.digest]
            return
        self.misses += 1
        parts: list[NDArray[np.float32]] = []
        for patches, grid in picture.calls(self._model):
            if parts:
                yield None
            parts.append(embed_patches(self._model, patches, grid))
        embeds = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if isinstance(picture.source, np.ndarray):
            self._keep(picture.digest, embeds)
        yield embeds

    def _keep(self, digest: bytes, embeds: NDArray[np.float32]) -> None:
        self._kept[digest] = embeds
        while sum(kept.nbytes for kept in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)
