"""Opening users' image files: what comes out, and the one line for what is not an image."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw
from transformers.image_transforms import convert_to_rgb

from calib_data.images import open_image, to_rgb
from console.errors import InputError


def noise(mode, height=13, width=17):
    bands = {"1": 1, "L": 1, "P": 1, "LA": 2, "RGB": 3, "YCbCr": 3, "HSV": 3, "LAB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = np.random.default_rng(bands).integers(0, 256, (height, width, bands), dtype=np.uint8)
    if mode in ("1", "P"):
        return Image.fromarray(pixels[..., 0]).convert(mode)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "YCbCr", "HSV", "LAB", "RGBA", "CMYK"])
def test_conversion_equals_transformers(mode):
    image = noise(mode)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), convert_to_rgb(image, return_numpy=True))


def test_a_transparent_palette_colour_is_paper():
    image = noise("P")
    image.info["transparency"] = image.getpixel((3, 4))
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), convert_to_rgb(image, return_numpy=True))
    assert to_rgb(image).getpixel((3, 4)) == (255, 255, 255)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    """Nobody writes to it: to open it would never end."""
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to("a.png")
    for name in ("a.png", "link.png"):
        with pytest.raises(InputError, match=rf"{name}: is no regular file; give the path of an image file"):
            open_image(tmp_path / name)


@pytest.mark.parametrize(("name", "mode"), [("a.png", "RGBA"), ("a.tif", "CMYK"), ("a.gif", "P"), ("a.bmp", "L")])
def test_files_come_back_as_rgb(tmp_path, name, mode):
    image = noise(mode)
    image.save(tmp_path / name)
    opened = open_image(tmp_path / name)
    assert opened.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(opened), convert_to_rgb(image, return_numpy=True))


def test_camera_orientation_is_applied(tmp_path):
    image = noise("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "turned.png")), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_16_bit_grey_keeps_its_shades(tmp_path, name):
    shades = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(shades).save(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / name))[..., 1], shades // 256)


def jpeg():
    buffer = io.BytesIO()
    noise("RGB", 64, 64).save(buffer, "JPEG")
    return buffer.getvalue()


def png_of(width, height):
    """A valid PNG header that announces width x height pixels, with next to no data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an image"),
        (b"just a text file\n", "is not an image"),
        (jpeg()[:500], "cannot be read as an image"),
        (png_of(64, 64), "cannot be read as an image"),
        (png_of(10000, 10000), "exceeds limit of 89478485 pixels"),  # Pillow only warns
        (png_of(60000, 60000), "exceeds limit of 178956970 pixels"),  # Pillow refuses
    ],
    ids=["empty", "text", "truncated-jpeg", "damaged-png", "large", "bomb"],
)
def test_one_line_for_a_file_that_is_no_image(tmp_path, content, message):
    path = tmp_path / "document.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_one_line_for_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match="is a directory"):
        open_image(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        open_image(tmp_path / "missing.png")


def test_32_bit_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "deep.tif")
    with pytest.raises(InputError, match="32-bit pixels"):
        open_image(tmp_path / "deep.tif")


def test_a_file_of_several_pages_is_refused(tmp_path):
    """Only the first would be read."""
    page = Image.new("L", (8, 8))
    page.save(tmp_path / "scan.tiff", save_all=True, append_images=[page, page])
    with pytest.raises(InputError, match=r"scan\.tiff: has 3 pages; save one file a page, or a PDF$"):
        open_image(tmp_path / "scan.tiff")
    page.save(tmp_path / "scan.tiff")
    assert open_image(tmp_path / "scan.tiff").size == (8, 8)


@pytest.mark.parametrize("name", ["film.gif", "film.webp", "film.png", "film.avif"])
def test_an_animation_is_refused(tmp_path, name):
    """Only its first frame would be read; a single picture of the same format is one."""
    Image.init()
    if name.partition(".")[2].upper() not in Image.SAVE_ALL:
        pytest.skip("this Pillow does not write it")
    first, *others = (Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue"))
    first.save(tmp_path / name, save_all=True, append_images=others)
    with pytest.raises(InputError, match=rf"{name}: has 3 frames; save one, or give `runtime generate --video` a fold"):
        open_image(tmp_path / name)
    first.save(tmp_path / name)
    assert open_image(tmp_path / name).size == (8, 8)


def test_a_photo_with_a_preview_behind_it_is_one_picture(tmp_path):
    """What phones and cameras write as JPEG."""
    photo = noise("RGB", 64, 64)
    photo.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    with Image.open(tmp_path / "photo.jpg") as stored:
        assert (stored.format, stored.n_frames) == ("MPO", 2)
    assert open_image(tmp_path / "photo.jpg").size == photo.size


@pytest.mark.parametrize("start", [0.3, 0.5, 0.95])
def test_a_png_whose_end_never_arrived_is_refused(tmp_path, start):
    """A stopped download leaves zeros where space was reserved: the rows there would be black, without an error."""
    page = Image.new("L", (200, 300), "white")
    ImageDraw.Draw(page).multiline_text((10, 10), "\n".join(f"line {n}" for n in range(20)))
    path = tmp_path / "scan.png"
    page.save(path)
    open_image(path)
    content = path.read_bytes()
    kept = int(len(content) * start)
    path.write_bytes(content[:kept] + bytes(len(content) - kept))
    with pytest.raises(InputError, match=r"scan\.png: cannot be read as an image \("):
        open_image(path)
