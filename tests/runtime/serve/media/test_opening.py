"""Images, PDFs and videos of requests are those of the same files; what a server must not open is refused."""

import gc
import time

import numpy as np
import pytest

from calib_data.images import open_image
from calib_data.sources.pdf import draw_page
from console.errors import InputError
from runtime.inputs.video import open_video
from runtime.serve.media import Media, MediaLimits
from runtime.serve.media.opening import _scratch

from ....calib_data.sources.pdf_files import page_file, text
from ...inputs.films import write_film
from .media_files import FILES, HUGE_JPEG, PLACE, data_uri, pdf_pages, png_of, tiff_of


@pytest.mark.parametrize("name", FILES)
def test_a_data_uri_is_read_as_the_file_is(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    image = Media().image(data_uri(FILES[name]), PLACE)
    assert image.mode == "RGB"
    assert image.tobytes() == open_image(tmp_path / name).tobytes()


def test_how_base64_is_broken_into_lines_does_not_matter():
    uri = data_uri(FILES["rgb.png"]).rstrip("=")
    lines = "\r\n".join(uri[at : at + 76] for at in range(0, len(uri), 76))
    assert Media().image(lines, PLACE).tobytes() == Media().image(uri, PLACE).tobytes()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64,", "is not an image of a supported format"),
        ("data:image/png;base64,####", "is not valid base64"),
        ("data:image/png,abc", "is not a data URI in base64"),
        ("data:", "is not a data URI in base64"),
        (data_uri(b"<svg/>"), "is not an image of a supported format"),
        (data_uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "is not an image of a supported format"),
        (data_uri(FILES["rgb.png"][:300]), "cannot be read as an image"),
        (data_uri(page_file()), "is a PDF; send it as a part of type file"),
        ("file:///etc/passwd", "is neither a data URI nor an http or https URL"),
        ("/etc/passwd", "is neither a data URI nor an http or https URL"),
        ("ftp://example.org/a.png", "is neither a data URI nor an http or https URL"),
        ("https://example.org/a.png", "example.org is not a domain that this server may fetch from"),
    ],
)
def test_what_is_no_image_is_said_with_its_place(url, message):
    with pytest.raises(InputError) as raised:
        Media().image(url, PLACE)
    assert str(raised.value).startswith(f"{PLACE}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bomb", [png_of(60000, 60000), png_of(9000, 9000), tiff_of(50000, 50000), tiff_of(9000, 9000)])
def test_a_bomb_is_refused_from_its_header(bomb):
    started = time.process_time()
    with pytest.raises(InputError, match=r"image_url: .*(too many pixels|9000 x 9000 pixels, more than 64000000)"):
        Media().image(data_uri(bomb), PLACE)
    assert time.process_time() - started < 0.5


def test_too_many_bytes_are_refused():
    media = Media(MediaLimits(bytes=1000))
    for content in (bytes(1001), bytes(100_000)):
        with pytest.raises(InputError, match="image_url: has more than 1000 bytes"):
            media.image(data_uri(content), PLACE)


def test_a_pdf_is_its_pages(tmp_path):
    content = page_file(text("Total 96,200", 20, 50))
    (tmp_path / "a.pdf").write_bytes(content)
    ((name, page),) = Media().pages(data_uri(content, "application/pdf"), "messages[0].content[1].file")
    assert name == "messages[0].content[1].file: page 1"
    assert page.tobytes() == draw_page(tmp_path / "a.pdf", 0).tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pdf_pages(5), "has 5 pages, more than 4; send fewer"),
        (HUGE_JPEG, "page 1: has an image of 60000 x 60000 pixels"),
        (page_file()[:-20], "cannot be read as a PDF"),
        (FILES["rgb.png"], "is not a PDF; send an image as a part of type image_url"),
        (b"%PDF-1.7\n%%EOF", "cannot be read as a PDF"),
    ],
)
def test_a_pdf_that_cannot_be_read_is_said_without_a_path(content, message):
    with pytest.raises(InputError) as raised:
        list(Media(MediaLimits(pages=4)).pages(data_uri(content, "application/pdf"), "messages[0].content[1].file"))
    assert str(raised.value).startswith("messages[0].content[1].file: ")
    assert message in str(raised.value)
    assert "exaone-docvlm" not in str(raised.value)


def test_a_page_of_any_size_has_few_pixels():
    ((_, page),) = Media().pages(data_uri(pdf_pages(1, "0 0 14000 14000")), "file")
    assert page.width * page.height <= 3_211_264


@pytest.fixture
def film(tmp_path):
    """Bytes of a film of 12 frames, and its path."""
    pyav = pytest.importorskip("av", reason="PyAV, the extra 'video', is not installed")
    write_film(pyav, tmp_path / "film.mp4", 12)
    return tmp_path / "film.mp4"


VIDEO = "messages[0].content[0].video_url"


def copies():
    """Names of temporary files."""
    gc.collect()  # what a traceback of another test has kept
    return [path.name for path in _scratch().iterdir()]


def test_a_video_is_read_as_the_file_is_and_its_copy_goes_with_it(film):
    video, expected = Media().video(data_uri(film.read_bytes(), "video/mp4"), VIDEO), open_video(film)
    assert (video.name, video.frames, video.fps) == (VIDEO, 12, expected.fps)
    assert copies() == ["0.video"]
    numbers = np.array([0, 5, 11])
    frames = video.read(numbers)
    del video
    assert copies() == ["0.video"]
    for frame, same in zip(frames, expected.read(numbers), strict=True):
        assert frame.tobytes() == same.tobytes()
    del frames
    assert copies() == []


def test_frames_of_a_damaged_video_are_said_without_a_path(film):
    video = Media().video(data_uri(film.read_bytes()), VIDEO)
    (name,) = copies()
    copy = _scratch() / name
    copy.write_bytes(bytes(copy.stat().st_size))
    with pytest.raises(InputError) as raised:
        list(video.read(np.array([0, 5])))
    assert str(raised.value).startswith(f"{VIDEO}: ")
    assert str(_scratch()) not in str(raised.value)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PLAYLIST, "is not an MP4, MOV, WebM, MKV or AVI video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "is not an MP4, MOV, WebM, MKV or AVI video"),
        (b"GIF89a" + bytes(50), "is not an MP4, MOV, WebM, MKV or AVI video"),
        (b"\0\0\0\x18ftypisom" + bytes(50) + PLAYLIST, "is not a video that can be read"),
        (b"RIFF\0\0\0\0AVI " + PLAYLIST, "video"),
    ],
)
def test_what_is_no_video_is_never_opened_as_something_else(content, message):
    with pytest.raises(InputError) as raised:
        Media().video(data_uri(content, "video/mp4"), VIDEO)
    assert str(raised.value).startswith(f"{VIDEO}: ")
    assert message in str(raised.value)
    assert str(_scratch()) not in str(raised.value)
    assert copies() == []


def test_frames_of_too_many_pixels_are_refused_from_the_header(film):
    with pytest.raises(InputError, match=r"video_url: 96 x 64 pixels, more than 6000; send it smaller"):
        Media(MediaLimits(pixels=6000)).video(data_uri(film.read_bytes()), VIDEO)


def test_frames_that_take_too_long_to_decode_are_refused(film):
    with pytest.raises(InputError, match=r"video_url: has 12 frames of 96 x 64 pixels, which take too long to decode"):
        Media(MediaLimits(video_pixels=12 * 96 * 64 - 1)).video(data_uri(film.read_bytes()), VIDEO)
    assert copies() == []


def test_nothing_is_left_of_a_pdf_half_read():
    pages = Media().pages(data_uri(pdf_pages(3)), "file")
    next(pages)
    assert copies() == ["0.pdf"]
    pages.close()
    assert copies() == []
