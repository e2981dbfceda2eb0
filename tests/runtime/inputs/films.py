"""Frames to make videos of, the settings of a folder, and what refuses a video."""

import json

import numpy as np
import pytest
from PIL import Image

from console.errors import InputError
from runtime.inputs.video import Video, VideoSettings, open_video


def settings_of(folder, **change):
    (folder / "video_preprocessor_config.json").write_text(json.dumps(change))
    return VideoSettings.from_folder(folder)


def pictures(frames, height, width):
    """Noise over a gradient: every filter tap and every level is used."""
    random = np.random.default_rng(frames * 7919 + height)
    ramp = np.add.outer(np.linspace(0, 128, height), np.linspace(0, 64, width))[..., None]
    return [(ramp + random.integers(0, 64, (height, width, 3))).astype(np.uint8) for _ in range(frames)]


def video_of(pixels, fps=None, requested_fps=None):
    height, width, _ = pixels[0].shape
    return Video(
        "v",
        len(pixels),
        height,
        width,
        fps,
        requested_fps,
        lambda numbers: (Image.fromarray(pixels[n]) for n in numbers),
    )


def save_frames(folder, pixels):
    folder.mkdir()
    for number, frame in enumerate(pixels):
        Image.fromarray(frame).save(folder / f"frame-{number}.png")
    return folder


def write_film(pyav, path, frames, height=64, width=96, options=None):
    """A grey film with a level for each frame, white in the top left quarter."""
    with pyav.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libvpx" if path.suffix == ".webm" else "mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            pixels = np.full((height, width, 3), 4 * number, np.uint8)
            pixels[: height // 2, : width // 2] = 255
            container.mux(stream.encode(pyav.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def refused(says, path, fps=None):
    with pytest.raises(InputError, match=says) as caught:
        video = open_video(path, fps)
        list(video.read(np.arange(video.frames)))
    assert "\n" not in str(caught.value)
