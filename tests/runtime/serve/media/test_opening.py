"""Images, PDFs and videos of requests are those of the same files; what a server must not open is refused."""

import time

import pytest

from calib_data.images import open_image
from calib_data.sources.pdf import draw_page
from console.errors import InputError
from runtime.serve.media import Media, MediaLimits

from ....calib_data.sources.pdf_files import page_file, text
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
