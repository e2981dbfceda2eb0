"""From a video, a file or a folder of frames, to the patches that the vision encoder reads.

Which frames are taken and how large they become is transformers' Qwen2-VL video processor, EXAONE's. Two differences:
that one takes every frame of a file unless it is told a rate, here the model's own or two a second; and frames are
resized by Pillow, as images are, where it has torch's resampler, which may round a level (1/255) the other way.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from calib_data.images import open_image
from console.errors import InputError
from runtime.inputs.images import ImageSettings, image_grid, processor_config, to_patches
from runtime.inputs.video_files import is_cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray
    from PIL import Image

CALL_PATCHES = (
    16384  # patches a call of the vision graph, those of the largest image, so that any video fits as it does
)
FPS = 2.0  # frames a second of a file, where the model's settings name neither a rate nor a number
DEFAULTS: dict[str, Any] = {  # the video processor's own
    "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


@dataclass(frozen=True)
class VideoSettings:
    """How a model wants its videos.

    image: sizes and normalisation of a frame. fps, num_frames: frames a second or in all, None where the model does not
    say. min_frames, max_frames: bounds of what a rate gives. total_pixels: of all frames together, None for any.
    """

    image: ImageSettings
    fps: float | None
    num_frames: int | None
    min_frames: int
    max_frames: int
    total_pixels: int | None

    @classmethod
    def from_folder(cls, folder: Path) -> VideoSettings:
        """Read the video settings of `folder` where transformers looks for them: three files, the image settings last.

        Raises InputError for a file that is missing, broken or incomplete.
        """
        path, config = processor_config(folder, "video_processor", "video_preprocessor_config.json")
        image = ImageSettings.from_config({**DEFAULTS, **config}, path)
        try:
            return cls._from_config(config, image)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: unusable video settings ({error})") from error

    @classmethod
    def _from_config(cls, config: Mapping[str, Any], image: ImageSettings) -> VideoSettings:
        fps = num_frames = total_pixels = None
        if config.get("do_sample_frames", True):
            fps, num_frames = config.get("fps"), config.get("num_frames")
        if config.get("cap_pixels_per_frame"):
            block = (image.patch_size * image.merge_size) ** 2
            total_pixels = int(config.get("max_video_tokens", 128000) * block * 0.9)
        settings = cls(
            image=image,
            fps=None if fps is None else float(fps),
            num_frames=None if num_frames is None else int(num_frames),
            min_frames=int(config.get("min_frames", 4)),
            max_frames=int(config.get("max_frames", 768)),
            total_pixels=total_pixels,
        )
        if settings.fps is not None and not 0 < settings.fps < math.inf:
            raise ValueError("fps must be above 0")
        least = image.temporal_patch_size
        if settings.max_frames < least or (settings.num_frames is not None and settings.num_frames < least):
            raise ValueError(f"max_frames and num_frames must be {least} or more")
        return settings


@dataclass(frozen=True)
class Video:
    """A video whose frames are read when they are wanted.

    name: what an error calls it. frames: how many it has, all of height x width pixels. fps: its frames a second, None
    for a folder, whose frames have been chosen already. wanted_fps: how many were asked for, None for no wish. read:
    gives the frames of the ascending numbers it is told, one after the other.
    """

    name: str
    frames: int
    height: int
    width: int
    fps: float | None
    wanted_fps: float | None
    read: Callable[[NDArray[np.int64]], Iterator[Image.Image]]


def open_video(path: Path, fps: float | None = None) -> Video:
    """Open a folder of pictures, in the order of the numbers in their names, or a file that PyAV decodes.

    fps: frames to take of a second of a file. Raises InputError, naming the path, for what is no video of two frames or
    more, and where PyAV is needed and not installed.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise InputError(f"--fps {fps}: must be above 0")
    if not path.exists():
        raise InputError(f"{path}: no such file, give a video or a folder of its frames")
    video = _open_folder(path, fps) if path.is_dir() else _open_file(path, fps)
    if video.frames < 2:
        raise InputError(f"{path}: has one frame, a video has two or more; give a single picture with --image")
    return video


def _open_folder(folder: Path, fps: float | None) -> Video:
    if fps is not None:
        raise InputError(f"--fps {fps}: {folder} is a folder of frames, which tell no time; ask without --fps")
    paths = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=_by_number)
    if not paths:
        raise InputError(f"{folder}: is empty, it must hold the frames of a video as images")
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
                raise InputError(f"{path}: has no video, give a video file or a folder of its frames")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            # Counted without decoding: what a file announces, if anything, includes frames that a trim has hidden.
            frames = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
    except av.FFmpegError as error:
        raise InputError(f"{path}: is not a video that PyAV reads ({error.strerror})") from error
    if is_cut(path):
        raise InputError(f"{path}: ends before its last frames; copy it again, or give a folder of those that it has")
    first = next(_decode(path), None)
    if first is None or not rate:
        raise InputError(f"{path}: has no frames, give a video file or a folder of its frames")
    return Video(str(path), frames, first.height, first.width, float(rate), fps, lambda numbers: _read(path, numbers))


def _pyav(path: Path) -> ModuleType:
    try:
        return import_module("av")
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path}: PyAV, which reads video files, is not installed; run: pip install '.[video]', or give a folder "
            "of frames"
        ) from error


def _decode(path: Path) -> Iterator[Image.Image]:
    """All frames of a file, upright: a phone writes them lying on their side, and by how much to turn them."""
    av = _pyav(path)
    try:
        with av.open(path, metadata_errors="ignore") as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(container.streams.video[0]):
                yield frame.to_image().rotate(frame.rotation, expand=True)
    except av.FFmpegError as error:
        raise InputError(f"{path}: cannot be read as a video ({error.strerror}), it may be damaged") from error


def _read(path: Path, numbers: NDArray[np.int64]) -> Iterator[Image.Image]:
    wanted = iter(numbers.tolist())
    next_wanted = next(wanted)
    for number, frame in enumerate(_decode(path)):
        if number == next_wanted:
            yield frame
            next_wanted = next(wanted, None)
            if next_wanted is None:
                return
    raise InputError(f"{path}: ends before its frame {next_wanted}, it may be damaged")


def sample_frames(video: Video, settings: VideoSettings) -> NDArray[np.int64]:
    """Numbers of the frames to take, evenly over the video; all of a folder, if they are not too many."""
    whole = settings.image.temporal_patch_size
    most = min(settings.max_frames, video.frames) // whole * whole
    if video.fps is None:
        count = video.frames if video.frames <= settings.max_frames else most
    elif video.wanted_fps is None and settings.num_frames is not None:
        count = min(round(settings.num_frames / whole) * whole, most)
    else:
        rate = video.wanted_fps or settings.fps or FPS
        count = math.floor(min(max(video.frames / video.fps * rate, settings.min_frames), most) / whole) * whole
    count = max(count, 1)
    # Through float32, as transformers counts.
    return (np.arange(count) * (video.frames / count)).astype(np.float32).astype(np.int64)


def left_out(video: Video, settings: VideoSettings) -> str | None:
    """What to say of a folder with more frames than are read: who chose them meant all of them."""
    count = len(sample_frames(video, settings))
    if video.fps is not None or count == video.frames:
        return None
    return f"{video.name}: {count} of its {video.frames} frames are read, evenly; the model's settings allow no more"


def video_grid(video: Video, settings: VideoSettings) -> tuple[int, int, int]:
    """Frames, rows and columns of patches, of which `temporal_patch_size` frames share one.

    Raises InputError for frames more than 200 times longer than wide.
    """
    count, whole = len(sample_frames(video, settings)), settings.image.temporal_patch_size
    image = settings.image
    if settings.total_pixels is not None:
        share = settings.total_pixels * whole // count
        image = replace(image, max_pixels=max(min(image.max_pixels, share), int(image.min_pixels * 1.05)))
    return -(-count // whole), *image_grid(video.height, video.width, image, video.name)


def video_patches(video: Video, settings: VideoSettings) -> Iterator[tuple[NDArray[np.float32], tuple[int, int, int]]]:
    """Patches [P, ...] and grid of as many frames as one call of the vision graph takes, until all have been given.

    Frames that do not fill their last patches are followed by the last of them again. Raises InputError for frames that
    cannot be read.
    """
    _, rows, columns = video_grid(video, settings)
    frames = video.read(sample_frames(video, settings))
    groups = iter(lambda: list(islice(frames, settings.image.temporal_patch_size)), [])
    patches = (to_patches(group, rows, columns, settings.image) for group in groups)
    while call := list(islice(patches, max(1, CALL_PATCHES // (rows * columns)))):
        yield np.concatenate(call), (len(call), rows, columns)
