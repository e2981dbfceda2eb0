"""Files of a video: frames at the numbers asked for, trimmed, turned and truncated films."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from console.errors import InputError
from runtime.inputs.video import open_video, sample_frames

from .films import refused, settings_of, write_film


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
