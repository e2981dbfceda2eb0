"""Videos: frames taken, their patches against plain tensor arithmetic, files, and one line for what is no video.

transformers' video processor needs torchvision, which does not install next to every torch. So this file
writes its arithmetic with torch: `torch.nn.functional.interpolate` is what torchvision calls.
"""

import json
import struct
import sys
from fractions import Fraction

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

CONFIG = json.loads((READER / "preprocessor_config.json").read_text())
OWN = {"size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}}
LEVELS = 2  # torch and Pillow keep weights of other precision between the two passes of resizing
SHARE = 0.01  # of values that differ at all


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


def refused(says, path, fps=None):
    with pytest.raises(InputError, match=says) as caught:
        video = open_video(path, fps)
        list(video.read(np.arange(video.frames)))
    assert "\n" not in str(caught.value)


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


@pytest.fixture
def pyav():
    return pytest.importorskip("av", reason="PyAV, the extra 'video', is not installed")


def hide_first_frames(pyav, source, path, frames):
    """Trim as a phone does: all frames stay in the file, and its edit list says that the first are not shown."""
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with pyav.open(str(source)) as container, pyav.open(str(path), "w", options=options) as trimmed:
        stream = container.streams.video[0]
        copy = trimmed.add_stream_from_template(stream)
        earlier = round(frames / stream.average_rate / stream.time_base)
        for packet in container.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - earlier, packet.dts - earlier, copy
                trimmed.mux(packet)


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


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_file_is_read_at_the_numbers_asked_for(suffix, pyav, tmp_path):
    path = tmp_path / f"film.{suffix}"
    write_film(pyav, path, 50)
    video = open_video(path, 5)
    assert (video.frames, video.height, video.width, video.fps, video.requested_fps) == (50, 64, 96, 25.0, 5)
    levels = [np.asarray(frame)[48:, 64:].mean() for frame in video.read(np.array([0, 7, 49]))]
    np.testing.assert_allclose(levels, [0, 28, 196], atol=5)
    numbers = sample_frames(video, settings_of(tmp_path))
    assert numbers.tolist() == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]


def test_frames_that_a_trimmed_film_hides_do_not_count(pyav, tmp_path):
    write_film(pyav, tmp_path / "film.mp4", 50)
    hide_first_frames(pyav, tmp_path / "film.mp4", tmp_path / "cut.mp4", 15)
    with pyav.open(str(tmp_path / "cut.mp4")) as container:
        assert container.streams.video[0].frames == 50
    video = open_video(tmp_path / "cut.mp4", 5)
    assert (video.frames, video.fps) == (35, 25.0)
    numbers = sample_frames(video, settings_of(tmp_path))
    assert numbers.tolist() == [0, 5, 11, 17, 23, 29]
    levels = [np.asarray(frame)[48:, 64:].mean() for frame in video.read(numbers)]
    np.testing.assert_allclose(levels, 4 * (15 + numbers), atol=5)


def test_a_film_taken_upright_is_turned(pyav, tmp_path):
    """The turn is written into the file's header: a quarter clockwise, so that white moves to the top right."""
    write_film(pyav, tmp_path / "film.mp4", 3)
    raw = bytearray((tmp_path / "film.mp4").read_bytes())
    matrix = raw.index(b"tkhd") + 4 + 4 + 20 + 16
    raw[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "film.mp4").write_bytes(raw)
    video = open_video(tmp_path / "film.mp4")
    assert (video.height, video.width) == (96, 64)
    (frame,) = video.read(np.array([1]))
    assert np.asarray(frame)[:40, 40:].min() > 200
    assert np.asarray(frame)[:40, :24].max() < 60


def test_files_that_are_no_videos_are_named(pyav, tmp_path):
    write_film(pyav, tmp_path / "film.mkv", 50)
    film = tmp_path / "film.mp4"
    write_film(pyav, film, 50)
    cut, text, one, picture = (tmp_path / name for name in ("cut.mp4", "text.mp4", "one.mp4", "picture.png"))
    cut.write_bytes(film.read_bytes()[:3000])
    text.write_text("This is not a video.")
    write_film(pyav, one, 1)
    Image.new("RGB", (50, 40)).save(picture)
    refused(r"cut\.mp4: is not a video that PyAV reads", cut)
    refused(r"text\.mp4: is not a video that PyAV reads", text)
    refused(r"one\.mp4: has one frame", one)
    refused(r"picture\.png: has one frame, .* with --image", picture)
    video = open_video(film)
    with pytest.raises(InputError, match=r"film\.mp4: ends before its frame 60"):
        list(video.read(np.array([10, 60])))


WHOLE = {  # the header comes first, and says how long the rest is
    "film.mkv": {},
    "film.webm": {},
    "film.mp4": {"movflags": "faststart"},
    "parts.mp4": {"movflags": "frag_keyframe+empty_moov"},
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_truncated_film_is_refused(name, pyav, tmp_path):
    path = tmp_path / name
    write_film(pyav, path, 50, options=WHOLE[name])
    whole = path.read_bytes()
    assert open_video(path).frames == 50
    path.write_bytes(whole[: len(whole) * 6 // 10])
    refused(rf"{name}: ends before its last frames; copy it again", path)


@pytest.mark.parametrize("name", WHOLE)
def test_a_still_end_is_not_missing(name, pyav, tmp_path):
    """As slides and recorded screens have it: the last frame is shown for six seconds."""
    path, milliseconds = tmp_path / name, Fraction(1, 1000)
    with pyav.open(str(path), "w", options=WHOLE[name]) as container:
        stream = container.add_stream("libvpx" if path.suffix == ".webm" else "mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = milliseconds
        for at, shown in ((0, 3000), (3000, 1000), (4000, 6000)):
            frame = pyav.VideoFrame.from_ndarray(np.full((64, 96, 3), at // 20, np.uint8), format="rgb24")
            frame.pts, frame.time_base, frame.duration = at, milliseconds, shown
            for packet in [*stream.encode(frame), *(stream.encode() if at == 4000 else [])]:
                packet.duration = shown
                container.mux(packet)
    assert open_video(path).frames == 3


@pytest.mark.parametrize(("name", "options"), [("live.mkv", {"live": "1"}), ("film.ts", {})])
def test_a_recording_that_says_no_length_is_read_as_far_as_it_goes(name, options, pyav, tmp_path):
    path = tmp_path / name
    write_film(pyav, path, 50, options=options)
    whole = path.read_bytes()
    assert open_video(path).frames == 50
    path.write_bytes(whole[: len(whole) * 6 // 10])
    assert 20 < open_video(path).frames < 40


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
