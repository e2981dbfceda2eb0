"""Turns a video, a file or a folder of frames, into patches for the vision encoder.

Frames are chosen and sized as by transformers' Qwen2-VL video processor, which EXAONE uses, with two differences. That
one takes every frame of a file unless a rate is given; here the default is the model's rate, or 2 frames a second. And
Pillow resizes frames, as it does images; torch's resampler may round a level (1/255) the other way.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as typed

from calib_data.images import open_image, visible_paths
from console.errors import InputError
from console.files import RESTORE, Size, to_type
from runtime.inputs.images import ImageSettings, cut, image_grid, processor_config, resize
from runtime.sizes import CALL_PATCHES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray
    from PIL import Image

FPS = 2.0  # frames a second of a file, where the model's settings have neither a rate nor a number
DEFAULTS: dict[str, Any] = {  # those of the video processor
    "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
_TIMED_FORMATS = ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2")  # FFmpeg's names of formats whose header has a duration
Patches = tuple["NDArray[np.float32]", tuple[int, int, int]]
"""Patches [P, ...] and their grid (frames, rows, columns)."""
FrameGroup = list["NDArray[np.uint8]"]
"""Resized frames [height, width, 3] that share patches."""
_MISSING = 0.5  # seconds; a file that ends earlier than its header says, by more than this, is truncated


@dataclass(frozen=True)
class VideoSettings:
    """How a model's videos are prepared."""

    image: ImageSettings
    """Size and normalisation of a frame."""
    fps: float | None
    """Frames a second; None where the model has no rate."""
    num_frames: int | None
    """Frames in all; None where the model has no number."""
    min_frames: int
    """Lower bound of frames taken at a rate."""
    max_frames: int
    """Upper bound of frames."""
    total_pixels: int | None
    """Upper bound of pixels of all frames together; None for no bound."""

    @classmethod
    def from_folder(cls, folder: Path) -> VideoSettings:
        """Read the video settings of `folder` from where transformers does: one of three files, image settings last.

        Raises InputError for a file that is missing, broken or incomplete.
        """
        path, config = processor_config(folder, "video_processor", "video_preprocessor_config.json")
        image = ImageSettings.from_config({**DEFAULTS, **config}, path)
        file = to_type(_VideoProcessor, config, path)
        fps, num_frames = (file.fps, file.num_frames) if file.do_sample_frames is not False else (None, None)
        minimum = image.temporal_patch_size
        for name, frames in (("max_frames", file.max_frames), ("num_frames", num_frames)):
            if frames is not None and frames < minimum:
                raise InputError(f"{path}: unusable video settings ({name} must be {minimum} or more); {RESTORE}")
        block = (image.patch_size * image.merge_size) ** 2
        total_pixels = int(file.max_video_tokens * block * 0.9) if file.cap_pixels_per_frame else None
        return cls(image, fps, num_frames, file.min_frames, file.max_frames, total_pixels)


@typed(config=ConfigDict(strict=True, allow_inf_nan=False))
class _VideoProcessor:
    """What is read of a video processor's settings besides those of an image, as its file has them."""

    fps: Annotated[float, Field(gt=0)] | None = None
    num_frames: Size | None = None
    min_frames: Size = 4
    max_frames: Size = 768
    do_sample_frames: bool | None = True
    cap_pixels_per_frame: bool | None = False
    """Bound the pixels of all frames together,"""
    max_video_tokens: Size = 128000
    """so that they take 90 % of these tokens."""


@dataclass(frozen=True)
class Video:
    """An opened video. Its frames are decoded when they are read."""

    name: str
    """Its path, for messages."""
    frames: int
    """Number of frames."""
    height: int
    """Pixels of every frame."""
    width: int
    """Pixels of every frame."""
    fps: float | None
    """Frames a second; None for a folder, whose frames are chosen already."""
    requested_fps: float | None
    """Frames to take a second; None for the model's rate."""
    read: Callable[[NDArray[np.int64]], Iterator[Image.Image]]
    """Yields the frames of ascending numbers."""


def open_video(path: Path, fps: float | None = None) -> Video:
    """Open a folder of frames, in the order of the numbers in their names, or a file that PyAV decodes.

    fps: frames to take from each second of a file. Raises InputError, naming the path, for anything but a whole video
    of two frames or more, and where PyAV is needed and not installed.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise InputError(f"--fps {fps}: must be above 0")
    if not path.exists():
        raise InputError(f"{path}: no such file; give a video or a folder of its frames")
    video = _open_folder(path, fps) if path.is_dir() else _open_file(path, fps)
    if video.frames < 2:
        raise InputError(f"{path}: has one frame, a video has two or more; give a single image with --image")
    return video


def _open_folder(folder: Path, fps: float | None) -> Video:
    if fps is not None:
        raise InputError(f"--fps {fps}: {folder} is a folder of frames without timestamps; ask without --fps")
    paths = sorted(visible_paths(folder), key=_by_number)
    if not paths:
        raise InputError(f"{folder}: is empty; it must hold the frames of a video as images")
    first = open_image(paths[0])

    def read(numbers: NDArray[np.int64]) -> Iterator[Image.Image]:
        for number in numbers:
            frame = open_image(paths[number])
            if frame.size != first.size:
                sizes = f"{frame.width} x {frame.height} pixels, the first frame {first.width} x {first.height}"
                raise InputError(f"{paths[number]}: has {sizes}; make all frames of one size")
            yield frame

    return Video(str(folder), len(paths), first.height, first.width, None, None, read)


def _by_number(path: Path) -> list[tuple[bool, int, str]]:
    """Sort `frame-2` before `frame-10`."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", path.name)]


def _open_file(path: Path, fps: float | None) -> Video:
    av = _pyav(path)
    try:
        with av.open(path, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise InputError(f"{path}: has no video; give a video file or a folder of its frames")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            frames = _count_frames(container, path)
    except av.FFmpegError as error:
        raise InputError(f"{path}: is not a video that PyAV reads ({error.strerror})") from error
    first = next(_decode(path, [0]), None)
    if first is None or not rate:
        raise InputError(f"{path}: has no frames; give a video file or a folder of its frames")
    return Video(str(path), frames, first.height, first.width, float(rate), fps, lambda numbers: _read(path, numbers))


def _count_frames(container: Any, path: Path) -> int:  # noqa: ANN401 - PyAV is optional
    """Count the frames of the first video stream without decoding: a header's count includes those hidden by a trim.

    Raises InputError for a file that is shorter than its header says, which FFmpeg reads without an error.
    """
    index, frames, end, incomplete = container.streams.video[0].index, 0, 0.0, False
    for packet in container.demux():
        if packet.size == 0:  # the end of a stream
            continue
        frames += packet.stream_index == index and not packet.is_discard
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        incomplete |= packet.stream_index == index and packet.is_corrupt
    short = container.duration is not None and end + _MISSING < container.duration / 1e6
    if container.format.name in _TIMED_FORMATS and (incomplete or short):
        raise InputError(f"{path}: ends before its last frames; copy it again, or give a folder of those that it has")
    return frames


def _pyav(path: Path) -> ModuleType:
    try:
        return import_module("av")
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path}: PyAV, which reads video files, is not installed; run: pip install '.[video]', or give a folder "
            "of frames"
        ) from error


def _decode(path: Path, numbers: Sequence[int]) -> Iterator[Image.Image]:
    """The frames of a file that have these ascending numbers, upright: phones store the rotation next to the frames.

    Every frame up to the last of them is decoded, but only they become pictures, which takes longer than decoding.
    """
    av, wanted = _pyav(path), iter(numbers)
    try:
        with av.open(path, metadata_errors="ignore") as container:
            container.streams.video[0].thread_type = "AUTO"
            following = next(wanted, None)
            for number, frame in enumerate(container.decode(container.streams.video[0])):
                if number == following:
                    yield frame.to_image().rotate(frame.rotation, expand=True)
                    if (following := next(wanted, None)) is None:
                        return
    except av.FFmpegError as error:
        raise InputError(f"{path}: cannot be read as a video ({error.strerror}), it may be damaged") from error


def _read(path: Path, numbers: NDArray[np.int64]) -> Iterator[Image.Image]:
    found = 0
    for found, frame in enumerate(_decode(path, numbers.tolist()), 1):  # noqa: B007
        yield frame
    if found < len(numbers):
        raise InputError(f"{path}: ends before its frame {numbers[found]}, it may be damaged")


def sample_frames(video: Video, settings: VideoSettings) -> NDArray[np.int64]:
    """Choose frames evenly over the video; all of a folder, up to max_frames. Returns their numbers, ascending."""
    whole = settings.image.temporal_patch_size
    most = min(settings.max_frames, video.frames) // whole * whole
    if video.fps is None:
        count = video.frames if video.frames <= settings.max_frames else most
    elif video.requested_fps is None and settings.num_frames is not None:
        count = min(round(settings.num_frames / whole) * whole, most)
    else:
        rate = video.requested_fps or settings.fps or FPS
        count = math.floor(min(max(video.frames / video.fps * rate, settings.min_frames), most) / whole) * whole
    count = max(count, 1)
    # In float32, as transformers computes it.
    return (np.arange(count) * (video.frames / count)).astype(np.float32).astype(np.int64)


def left_out(video: Video, settings: VideoSettings) -> str | None:
    """A message for a folder with more frames than are read; None otherwise."""
    count = len(sample_frames(video, settings))
    if video.fps is not None or count == video.frames:
        return None
    return f"{video.name}: {count} of its {video.frames} frames are read, evenly; the model's settings allow no more"


def video_grid(video: Video, settings: VideoSettings) -> tuple[int, int, int]:
    """Grid (frames, rows, columns) of a video's patches; `temporal_patch_size` frames share one.

    Raises InputError for frames more than 200 times longer than wide.
    """
    count, whole = len(sample_frames(video, settings)), settings.image.temporal_patch_size
    image = settings.image
    if settings.total_pixels is not None:
        share = settings.total_pixels * whole // count
        image = replace(image, max_pixels=max(min(image.max_pixels, share), int(image.min_pixels * 1.05)))
    return -(-count // whole), *image_grid(video.height, video.width, image, video.name)


def video_patches(video: Video, settings: VideoSettings) -> Iterator[Patches]:
    """Yield patches [P, ...] and grid for one call of the vision graph after another; frames are decoded as needed.

    The last frame is repeated where frames do not fill their last patches. Raises InputError for frames that cannot be
    read.
    """
    return cut_calls(frame_groups(video, settings), settings.image)


def frame_groups(video: Video, settings: VideoSettings) -> Iterator[FrameGroup]:
    """Decode and resize the frames that are read, in groups that share patches. Raises InputError as above."""
    _, rows, columns = video_grid(video, settings)
    pictures = video.read(sample_frames(video, settings))
    frames = (resize(picture, rows, columns, settings.image) for picture in pictures)
    return iter(lambda: list(islice(frames, settings.image.temporal_patch_size)), [])


def cut_calls(groups: Iterable[FrameGroup], settings: ImageSettings) -> Iterator[Patches]:
    """Cut groups of frames, all of one size, into patches and grid for one call of the vision graph after another."""
    coming = iter(groups)
    for first in coming:
        rows, columns = (side // settings.patch_size for side in first[0].shape[:2])
        call = [first, *islice(coming, max(1, CALL_PATCHES // (rows * columns)) - 1)]
        patches = [cut(group, settings) for group in call]
        yield patches[0] if len(patches) == 1 else np.concatenate(patches), (len(call), rows, columns)
