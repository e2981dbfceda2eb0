"""Videos: frames taken, their patches against plain tensor arithmetic, and one line for what is no video.

transformers' video processor needs torchvision, which does not install next to every torch. So this file
writes its arithmetic with torch: `torch.nn.functional.interpolate` is what torchvision calls.
"""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from calib_data import READER
from console.errors import InputError
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.inputs import video as videos
from runtime.inputs.video import Video, VideoSettings, open_video, sample_frames, video_grid, video_patches
from runtime.prompt import build_prompt, embed_video

from .films import pictures, refused, save_frames, settings_of, video_of

CONFIG = json.loads((READER / "preprocessor_config.json").read_text())
OWN = {"size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}}
LEVELS = 2  # torch and Pillow keep weights of other precision between the two passes of resizing
SHARE = 0.01  # of values that differ at all


def plain_patches(pixels, height, width):
    """The video processor's arithmetic at patches of 14 x 14 x 2 and blocks of 2 x 2, for frames resized to a size."""
    frames = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    if frames.shape[-2:] != (height, width):
        frames = torch.nn.functional.interpolate(frames, (height, width), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(CONFIG[name]).view(3, 1, 1) * 255 for name in ("image_mean", "image_std"))
    values = (frames.float() - mean) / std
    if len(values) % 2:
        values = torch.cat((values, values[-1:]))
    time, rows, columns = len(values) // 2, height // 28, width // 28
    cut = values.view(time, 2, 3, rows, 2, 14, columns, 2, 14)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(time * rows * columns * 4, -1).numpy()


@pytest.mark.parametrize(
    ("change", "frames", "size", "expected"),
    [
        (CONFIG, 4, (112, 168), (112, 168)),  # as it is: nothing is resized
        (CONFIG, 5, (112, 168), (112, 168)),  # the last frame again
        (CONFIG, 3, (100, 150), (112, 140)),
        (OWN, 2, (100, 150), (280, 392)),  # the processor's own sizes: at least 128 tokens
        ({}, 3, (1000, 900), (812, 728)),  # at most 768, and these are also what a file without sizes means
        ({"min_pixels": 3136, "max_pixels": 50176}, 3, (300, 200), (252, 168)),
        ({**OWN, "cap_pixels_per_frame": True, "max_video_tokens": 800}, 9, (300, 700), (224, 532)),
    ],
    ids=["same", "odd", "images", "own", "none", "old", "capped"],
)
def test_patches_equal_plain_tensor_arithmetic(change, frames, size, expected, tmp_path):
    pixels, settings = pictures(frames, *size), settings_of(tmp_path, **change)
    grid = video_grid(video_of(pixels), settings)
    assert grid == (-(-frames // 2), expected[0] // 14, expected[1] // 14)
    calls = list(video_patches(video_of(pixels), settings))
    assert sum(part[0] for _, part in calls) == grid[0]
    patches, plain = np.concatenate([patches for patches, _ in calls]), plain_patches(pixels, *expected)
    assert patches.shape == plain.shape
    assert patches.dtype == np.float32
    std = np.repeat(np.array(CONFIG["image_std"], np.float32), 2 * 14 * 14)
    levels = np.abs(patches - plain) * std * 255
    if size == expected:
        assert levels.max() < 1e-3
    assert levels.max() < LEVELS + 0.1
    assert (levels > 0.1).mean() < SHARE


@pytest.mark.parametrize(
    ("total", "fps", "requested", "change", "expected"),
    [
        (100, 25, None, {}, [0, 12, 25, 37, 50, 62, 75, 87]),  # four seconds, two frames of each
        (100, 25, 1, {}, [0, 25, 50, 75]),
        (100, 25, None, {"fps": 1}, [0, 25, 50, 75]),
        (100, 25, 2, {"fps": 1}, [0, 12, 25, 37, 50, 62, 75, 87]),
        (100, 25, None, {"fps": 1, "do_sample_frames": False}, [0, 12, 25, 37, 50, 62, 75, 87]),
        (100, 25, None, {"num_frames": 5}, [0, 25, 50, 75]),  # rounded to whole patches
        (100, 25, 1, {"num_frames": 2}, [0, 25, 50, 75]),
        (100, 25, 99, {"max_frames": 7}, [0, 16, 33, 50, 66, 83]),
        (100, 25, 0.01, {"min_frames": 6}, [0, 16, 33, 50, 66, 83]),
        (10, 25, None, {}, [0, 2, 5, 7]),  # four frames at least
        (3, 25, None, {}, [0, 1]),
        (59, 1, 99, {}, [i * 59 // 58 for i in range(58)]),
        (5, None, None, {}, [0, 1, 2, 3, 4]),  # a folder: every frame
        (9, None, None, {"max_frames": 4}, [0, 2, 4, 6]),
    ],
)
def test_frames_taken(total, fps, requested, change, expected, tmp_path):
    video = Video("v", total, 56, 56, fps, requested, lambda numbers: iter(()))
    assert sample_frames(video, settings_of(tmp_path, **change)).tolist() == expected


@pytest.mark.parametrize(("total", "count"), [(100, 8), (100, 6), (100, 4), (10, 4), (9, 4), (3, 2), (1801, 120)])
def test_frames_are_spaced_as_in_transformers(total, count, tmp_path):
    """Not of 59 frames 58, for one: there rounding lets `arange` end a frame late, and transformers takes 59."""
    video = Video("v", total, 56, 56, 25, None, lambda numbers: iter(()))
    numbers = sample_frames(video, settings_of(tmp_path, num_frames=count))
    assert numbers.tolist() == torch.arange(0, total, total / count).int().tolist()


def test_a_long_video_is_read_a_call_at_a_time(tmp_path, monkeypatch):
    """Never more patches than the bound, and no frame before its call."""
    monkeypatch.setattr(videos, "CALL_PATCHES", 100)
    pixels, seen = pictures(11, 56, 84), []

    def read(numbers):
        for number in numbers:
            seen.append(number)
            yield Image.fromarray(pixels[number])

    settings = settings_of(tmp_path, **CONFIG)
    calls = video_patches(Video("v", 11, 56, 84, None, None, read), settings)
    first, grid = next(calls)
    assert (grid, len(first), len(seen)) == ((4, 4, 6), 96, 8)
    second, grid = next(calls)
    assert (grid, len(second), len(seen)) == ((2, 4, 6), 48, 11)
    assert next(calls, None) is None
    np.testing.assert_allclose(np.concatenate((first, second)), plain_patches(pixels, 56, 84), rtol=0, atol=1e-6)


def test_embeddings_do_not_depend_on_the_calls(reader, monkeypatch):
    video = video_of(pictures(9, 56, 84))
    (whole,) = embed_video(reader, video)
    assert whole.shape == (5 * 6, 256)
    monkeypatch.setattr(videos, "CALL_PATCHES", 1)  # one frame a call, at the least
    frames = list(embed_video(reader, video))
    assert len(frames) == 5
    np.testing.assert_allclose(np.concatenate(frames), whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_settings_are_where_transformers_looks(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**CONFIG, "max_frames": 10}))
    assert VideoSettings.from_folder(tmp_path).max_frames == 10
    assert VideoSettings.from_folder(tmp_path).image.max_pixels == 3211264
    own = settings_of(tmp_path, max_frames=20, fps=3)
    assert (own.max_frames, own.fps, own.min_frames, own.image.max_pixels) == (20, 3.0, 4, 602112)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": CONFIG}))
    assert VideoSettings.from_folder(tmp_path) == own
    nested = {"video_processor": {"max_frames": 30, "num_frames": 8}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    settings = VideoSettings.from_folder(tmp_path)
    assert (settings.max_frames, settings.num_frames, settings.fps, settings.total_pixels) == (30, 8, None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": "fast"}, "fps: Input should be a valid number, found 'fast'"),
        ({"fps": 0.0}, "fps: Input should be greater than 0"),
        ({"max_frames": 1}, "must be 2 or more"),
        ({"num_frames": 1}, "must be 2 or more"),
        ({"min_frames": []}, "min_frames: Input should be a valid integer"),
        ({"image_mean": 0.5}, "image_mean: Input should be a valid array"),
        ({"do_resize": False}, "do_resize is false"),
    ],
)
def test_wrong_settings_are_named(change, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        settings_of(tmp_path, **change)
    assert str(caught.value).startswith(str(tmp_path / "video_preprocessor_config.json"))


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    pixels = pictures(12, 30, 40)
    folder = save_frames(tmp_path / "film", pixels)
    (folder / "@eaDir").mkdir()
    for name in (".DS_Store", "._1.png", "Thumbs.db"):
        (folder / name).touch()
    video = open_video(tmp_path / "film")
    assert (video.frames, video.height, video.width, video.fps) == (12, 30, 40, None)
    for frame, expected in zip(video.read(np.arange(12)), pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(frame), expected)


def test_what_is_no_video_is_named(tmp_path):
    refused(r"gone: no such file; give a video or a folder", tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    refused(r"empty: is empty; it must hold the frames", tmp_path / "empty")
    one = save_frames(tmp_path / "one", pictures(1, 30, 40))
    refused(r"one: has one frame.*with --image", one)
    refused(r"--fps 2: .*one is a folder.* ask without --fps", one, 2)
    refused(r"--fps nan: must be above 0", one, float("nan"))
    refused(r"--fps -1: must be above 0", one, -1)
    film = save_frames(tmp_path / "film", pictures(3, 30, 40))
    (film / "notes.txt").write_text("not a picture")
    refused(r"notes\.txt: is not an image", film)
    (film / "notes.txt").unlink()
    Image.new("RGB", (41, 30)).save(film / "frame-3.png")
    refused(r"frame-3\.png: has 41 x 30 pixels, the first frame 40 x 30", film)
    (film / "frame-3.png").unlink()
    (film / "more").mkdir()
    refused(r"more: is a directory", film)


def test_frames_may_not_be_stripes(reader, tmp_path):
    with pytest.raises(InputError, match=r"^v: 1000 x 3 pixels, one side is more than 200 times"):
        build_prompt(reader, "Read the text.", videos=[video_of(pictures(2, 3, 1000))])


def test_a_file_without_pyav_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "film.mp4").write_bytes(b"anything")
    refused(r"film\.mp4: PyAV.*pip install '\.\[video\]', or give a folder of frames", tmp_path / "film.mp4")


def test_the_command_reads_a_folder(command, reader, exported, tmp_path):
    """Its answer is that of the model, its prompt has the video's tokens, and no picture's."""
    film = save_frames(tmp_path / "film", pictures(5, 56, 84))
    prompt = build_prompt(reader, "Read the text.", videos=[open_video(film)])
    assert ((prompt.ids == 68).sum(), (prompt.ids == 67).sum()) == (3 * 6, 0)
    arguments = "generate", "--model", exported("fp16"), "--video", film, "--temperature", 0, "--max-new-tokens", 8
    code, out, err = command(*arguments, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["prompt_tokens"] == len(prompt.ids)
    assert json.loads(out)["tokens"] == list(generate(reader, prompt, greedy, 8))


def test_the_command_says_how_many_frames_of_a_folder_are_read(command, copied, tmp_path):
    (copied / "video_preprocessor_config.json").write_text('{"max_frames": 4}')
    film = save_frames(tmp_path / "film", pictures(4, 56, 84))
    arguments = ("generate", "--model", copied, "--video", film, "--temperature", 0, "--max-new-tokens", 1, "--json")
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    for number in (4, 5):
        Image.new("RGB", (84, 56)).save(film / f"frame-{number}.png")
    code, more, err = command(*arguments)
    assert (code, json.loads(more)["prompt_tokens"]) == (0, json.loads(out)["prompt_tokens"])
    assert err == f"{film}: 4 of its 6 frames are read, evenly; the model's settings allow no more\n"


def test_the_command_reads_pictures_and_videos_together(command, exported, tmp_path):
    film, page = save_frames(tmp_path / "film", pictures(2, 56, 84)), tmp_path / "page.png"
    Image.new("RGB", (56, 56)).save(page)
    arguments = ("generate", "--model", exported("fp16"), "--max-new-tokens", 1, "--json", "--image", page)
    tokens = [json.loads(command(*arguments, *["--video", film] * count)[1])["prompt_tokens"] for count in (0, 1, 2)]
    assert np.diff(tokens).tolist() == [8, 8]  # six tokens between two marks


def test_a_video_that_cannot_be_used_is_one_line(command, exported, tmp_path):
    (tmp_path / "film").mkdir()
    remove = "remove <|video_pad|> from the text"
    for arguments, says in {
        ("--video", tmp_path / "film"): f"error: {tmp_path / 'film'}: is empty",
        ("--video", tmp_path / "gone"): f"error: {tmp_path / 'gone'}: no such file",
        ("--video", tmp_path / "film", "--fps", 0): "error: --fps 0.0: must be above 0",
        ("--fps", 2): "error: --fps 2.0: has no effect without a video; give one with --video",
        ("--prompt", "<|video_pad|>"): f"error: prompt: has 1 placeholders for 0 videos, {remove}",
    }.items():
        code, out, err = command("generate", "--model", exported("fp16"), *arguments)
        assert (code, out) == (2, "")
        assert err.startswith(says)
        assert err.count("\n") == 1
