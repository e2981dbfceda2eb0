"""From a conversation to what the decoder reads: token ids, then embeddings with those of images and videos."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from calib_data.scores import visible
from calib_data.sources import open_pictures
from console.errors import InputError
from console.progress import say
from runtime.chat import TooLongError
from runtime.inputs.images import image_grid, preprocess
from runtime.inputs.video import left_out, open_video, video_grid, video_patches
from runtime.inputs.vision import vision_feeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from runtime.exported import ExportedModel
    from runtime.inputs.messages import Message, Tool
    from runtime.inputs.video import Video


Images = str | Path | Image.Image | Iterable[str | Path | Image.Image]
"""One image or several: paths, where a PDF gives all its pages, or PIL images of any mode."""
Videos = str | Path | Iterable[str | Path]
"""One video or several: paths of video files or folders of frames."""


@dataclass(frozen=True)
class PromptInputs:
    """A rendered conversation that fits the model's context, and the images and videos that it shows."""

    ids: NDArray[np.int64]
    """Token ids [T], with a placeholder for each embedding of an image or a video."""
    images: Sequence[Image.Image]
    """Images in the order of their placeholders."""
    names: Sequence[str]
    """What errors call each image."""
    videos: Sequence[Video]
    """Videos in the order of their placeholders."""


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation as the decoder reads it."""

    ids: NDArray[np.int64]
    """Token ids [T]."""
    embeds: NDArray[np.float32]
    """Embeddings [T, H] of tokens, images and videos."""


def open_prompt_inputs(
    model: ExportedModel,
    question: str,
    images: Images = (),
    videos: Videos = (),
    *,
    fps: float | None = None,
    thinking: bool = False,
) -> PromptInputs:
    """Open images and videos, and render the question about them.

    fps: frames to take of a second of a video file. Raises InputError as `prompt_inputs` does, for an empty question
    and for a path that cannot be read.
    """
    if not visible(question):
        raise InputError("--prompt: is empty; write a question, or leave it out to have an image read")
    images = [images] if isinstance(images, str | Path | Image.Image) else images
    paths = [videos] if isinstance(videos, str | Path) else list(videos)
    refuse_unused_fps(fps, paths)
    opened = list(fitting_images(model, _open_images(images)))
    films = [open_video(Path(path), fps) for path in paths]
    names, pictures = [name for name, _ in opened], [picture for _, picture in opened]
    inputs = prompt_inputs(model, question, pictures, films, names=names, thinking=thinking)
    for film in films:
        if note := left_out(film, model.video_settings):
            say(note)
    return inputs


def refuse_unused_fps(fps: float | None, videos: Sequence[object]) -> None:
    """Raise InputError for a frame rate without a video."""
    if fps is not None and not videos:
        raise InputError(f"--fps {fps}: has no effect without a video; give one with --video")


def _open_images(images: Iterable[str | Path | Image.Image]) -> Iterator[tuple[str, Image.Image]]:
    """What errors call each image, and the image; several for a PDF, drawn one at a time."""
    for number, image in enumerate(images, 1):
        yield from [(f"image {number}", image)] if isinstance(image, Image.Image) else open_pictures(Path(image))


def fitting_images(model: ExportedModel, named: Iterable[tuple[str, Image.Image]]) -> Iterator[tuple[str, Image.Image]]:
    """Pass images on with what errors call them, one at a time.

    Raises InputError at the image that no longer fits the context: thousands of pages would fill the memory first.
    """
    tokens, context = 0, model.manifest.text.context
    for name, picture in named:
        tokens += math.prod(image_grid(picture.height, picture.width, model.image_settings, name))
        if tokens // _merged_patches(model) >= context:
            raise InputError(f"{name}: does not fit the model's context of {context} tokens; give fewer images")
        yield name, picture


def _merged_patches(model: ExportedModel) -> int:
    """Patches of an image token. Raises InputError for a model that reads no images."""
    if model.manifest.vision is None:
        raise InputError(f"{model.folder}: this model reads no images; ask without --image and --video")
    return model.manifest.vision.merge_size**2


def prompt_inputs(
    model: ExportedModel,
    messages: str | Sequence[Message],
    images: Sequence[Image.Image] = (),
    videos: Sequence[Video] = (),
    *,
    names: Sequence[str] = (),
    tools: Sequence[Tool] = (),
    thinking: bool = False,
    context: int | None = None,
) -> PromptInputs:
    """Render a conversation with its images and videos in order. Opens no session.

    messages: a text is a question about images, then videos. names: what errors call the images. context: tokens that
    it must not fill; None for the model's. Raises InputError for a prompt that does, and for an image or video that
    cannot be used.
    """
    whose, context = ("the", context) if context is not None else ("the model's", model.manifest.text.context)
    names = names or [f"image {number}" for number in range(1, len(images) + 1)]
    merge = _merged_patches(model) if images or videos else 1
    image_grids = [
        image_grid(x.height, x.width, model.image_settings, name) for x, name in zip(images, names, strict=True)
    ]
    video_grids = [video_grid(video, model.video_settings) for video in videos]
    image_tokens, video_tokens = ([math.prod(grid) // merge for grid in grids] for grids in (image_grids, video_grids))
    ids = model.chat.encode(messages, image_tokens, video_tokens, tools=tools, thinking=thinking, context=context)
    if len(ids) >= context:
        raise TooLongError(f"prompt: {len(ids)} tokens, but {whose} context is {context}; shorten it")
    return PromptInputs(ids, images, names, videos)


def embed_prompt(model: ExportedModel, inputs: PromptInputs) -> Prompt:
    """Look up the embeddings of tokens, and compute those of images and videos."""
    ids = inputs.ids
    embeds = model.embed_tokens(ids)
    images = (embed_image(model, image, name) for image, name in zip(inputs.images, inputs.names, strict=True))
    frames = chain.from_iterable(embed_video(model, video) for video in inputs.videos)
    _write_rows(embeds, ids == model.chat.image_token_id, images)
    _write_rows(embeds, ids == model.chat.video_token_id, frames)
    return Prompt(ids, embeds)


def build_prompt(
    model: ExportedModel, question: str, images: Sequence[Image.Image] = (), videos: Sequence[Video] = ()
) -> Prompt:
    """Render a question without thinking, and embed it."""
    return embed_prompt(model, prompt_inputs(model, question, images, videos))


def embed_image(model: ExportedModel, image: Image.Image, name: str) -> NDArray[np.float32]:
    """Embeddings [tokens, H] of one image. name: what errors call it."""
    patches, grid = preprocess(image, model.image_settings, name)
    return embed_patches(model, patches, grid)


def embed_video(model: ExportedModel, video: Video) -> Iterator[NDArray[np.float32]]:
    """Embeddings [tokens, H] of one video, some frames a call: frames do not attend to each other."""
    return (embed_patches(model, patches, grid) for patches, grid in video_patches(video, model.video_settings))


def embed_patches(
    model: ExportedModel, patches: NDArray[np.float32], grid: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Run the vision encoder on one image: of several in a call, each would be padded to the largest."""
    shape = model.manifest.vision
    assert shape is not None
    return model.vision.run(vision_feeds(patches, [grid], shape))


def _write_rows(
    embeds: NDArray[np.float32], placeholders: NDArray[np.bool_], pieces: Iterable[NDArray[np.float32]]
) -> None:
    """Write pieces [n, H], one after the other as they come, into the rows of embeds [T, H] that are placeholders."""
    rows, done = np.flatnonzero(placeholders), 0
    for piece in pieces:
        embeds[rows[done : done + len(piece)]] = piece
        done += len(piece)
    assert done == len(rows), f"{done} embeddings for {len(rows)} placeholders"
