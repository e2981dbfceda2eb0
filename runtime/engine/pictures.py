"""Images and videos of a prompt: decoded and resized when a request is made, encoded when its prompt is read."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from console.errors import naming
from runtime.inputs.images import image_grid, resize
from runtime.inputs.video import cut_calls, frame_groups
from runtime.prompt import embed_patches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL import Image

    from runtime.exported import ExportedModel
    from runtime.inputs.images import ImageSettings
    from runtime.inputs.video import FrameGroup, Patches, Video
    from runtime.prompt import PromptInputs

CACHE_BYTES = 1 << 30
"""Embeddings that are kept for later requests: 12 images of the largest size at 33 B."""


@dataclass(frozen=True)
class Picture:
    """One image or video of a prompt."""

    token: int
    """Id of its placeholder."""
    tokens: int
    """Placeholders, one for each embedding."""
    digest: bytes
    """Hash of its pixels and of the placeholder."""
    groups: list[FrameGroup]
    """Its resized frames, one for an image. They are 10 to 20 times smaller than their patches."""
    settings: ImageSettings
    """How they are cut into patches."""

    def calls(self) -> Iterator[Patches]:
        """Cut it into patches for one call of the vision encoder after another."""
        return cut_calls(self.groups, self.settings)


def open_pictures(model: ExportedModel, inputs: PromptInputs) -> list[Picture]:
    """Resize and hash the images and videos of a prompt, images first; videos are decoded.

    Raises InputError as `prompt_inputs` does, and for a video that cannot be read.
    """
    images = [_image(model, image, name) for image, name in zip(inputs.images, inputs.names, strict=True)]
    return images + [_video(model, video) for video in inputs.videos]


def _image(model: ExportedModel, image: Image.Image, name: str) -> Picture:
    settings = model.image_settings
    rows, columns = image_grid(image.height, image.width, settings, name)
    with naming(name):
        return _picture(model.chat.image_token_id, [[resize(image, rows, columns, settings)]], settings)


def _video(model: ExportedModel, video: Video) -> Picture:
    """Its decoding may take minutes: in the engine's thread it would stop all answers."""
    settings = model.video_settings
    return _picture(model.chat.video_token_id, list(frame_groups(video, settings)), settings.image)


def _picture(token: int | None, groups: list[FrameGroup], settings: ImageSettings) -> Picture:
    assert token is not None
    height, width, _ = groups[0][0].shape
    patches = len(groups) * (height // settings.patch_size) * (width // settings.patch_size)
    digest = hashlib.blake2b(f"{token} {height} {width} {sum(map(len, groups))} ".encode(), digest_size=16)
    for frame in chain.from_iterable(groups):
        digest.update(frame.tobytes())
    return Picture(token, patches // settings.merge_size**2, digest.digest(), groups, settings)


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
        for patches, grid in picture.calls():
            if parts:
                yield None
            parts.append(embed_patches(self._model, patches, grid))
        embeds = parts[0] if len(parts) == 1 else np.concatenate(parts)
        self._keep(picture.digest, embeds)
        yield embeds

    def _keep(self, digest: bytes, embeds: NDArray[np.float32]) -> None:
        self._kept[digest] = embeds
        while sum(kept.nbytes for kept in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)
