"""Grey levels of samples of any depth and kind equal those of the 8-bit rendering, or the file is refused.

The same picture is written in each way that a format knows. The samples that are written tell what is right.
"""

import io
import struct
import zlib
from itertools import product

import numpy as np
import pytest
from PIL import Image

from calib_data.images import open_image, read_image, to_rgb
from console.errors import InputError

from .tiff_files import Tiff

RAMP = np.linspace(0, 1, 9 * 13).reshape(9, 13)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], 2)


def samples_of(picture, bits):
    """Samples [height, width, samples] of a picture of 0 … 1, and what they are in 8 bits."""
    samples = np.round(picture * (2**bits - 1))
    return samples.astype(np.int64), samples / (2**bits - 1) * 255


def read(content):
    return np.asarray(read_image(io.BytesIO(content), "scan"), float)


def read_or_refused(content, expected, tolerance=1):
    """Whether a file is read. Fails if it is read as something else."""
    try:
        pixels = read(content)
    except InputError as error:
        assert str(error).startswith("scan: ")
        assert "\n" not in str(error)
        return False
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=tolerance)
    return True


def tiffs(**choices):
    """All combinations of values of a TIFF's fields."""
    return [Tiff(**dict(zip(choices, values, strict=True))) for values in product(*choices.values())]


LAYOUTS = {"order": "<>", "fill_order": (1, 2), "planar": (1, 2), "compression": (1, 8), "rows_per_strip": (4, 1 << 20)}


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32])
@pytest.mark.parametrize("photometric", [0, 1], ids=["white-is-zero", "black-is-zero"])
def test_grey_tiff(photometric, bits):
    samples, levels = samples_of(RAMP[..., None], bits)
    expected = 255 - levels if photometric == 0 else levels
    files = tiffs(photometric=(photometric,), bits=(bits,), **LAYOUTS)
    done = {file: read_or_refused(file.file((samples, ())), expected) for file in files}
    plain = Tiff(photometric, bits)
    assert done[plain] == (bits in (1, 2, 4, 8, 16) or (bits, photometric) == (12, 1))


@pytest.mark.parametrize(("bits", "sample_format"), [(8, 2), (16, 2), (32, 2), (16, 3), (32, 3), (64, 3)])
@pytest.mark.parametrize("photometric", [0, 1])
def test_signed_and_float_tiff_is_refused(photometric, bits, sample_format):
    """Their black and white are not known."""
    samples = RAMP[..., None] if sample_format == 3 else samples_of(RAMP[..., None], bits)[0] - 2 ** (bits - 1)
    for file in tiffs(photometric=(photometric,), bits=(bits,), sample_format=(sample_format,), **LAYOUTS):
        if file.fill_order == 1:
            with pytest.raises(InputError, match=r"^scan: (has signed|is not an image|has its samples in sep)"):
                read(file.file((samples, ())))


@pytest.mark.parametrize("bits", [4, 8, 12, 16, 32])
@pytest.mark.parametrize("extra", [(), (0,), (1,), (2,)], ids=["rgb", "rgbx", "premultiplied", "rgba"])
def test_colour_tiff(extra, bits):
    samples, levels = samples_of(COLOURS, bits)
    samples = np.concatenate([samples, np.full((9, 13, len(extra)), 2**bits - 1)], 2)
    files = tiffs(photometric=(2,), bits=(bits,), extra=(extra,), **LAYOUTS)
    done = {file: read_or_refused(file.file((samples, ())), levels) for file in files}
    assert done[Tiff(2, bits, extra=extra)] == (bits in (8, 16))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_tiff(bits):
    palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3))
    samples = np.random.default_rng(0).integers(0, 2**bits, (9, 13, 1))
    colour_map = (320, 3, tuple(int(level) * 257 for level in palette.T.reshape(-1)))
    files = tiffs(photometric=(3,), bits=(bits,), more=((colour_map,),), **LAYOUTS)
    done = [read_or_refused(file.file((samples, ())), palette[samples[..., 0]]) for file in files]
    assert done[0] and sum(done) >= len(files) // 2


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_grey_tiff_with_a_second_sample(extra, bits):
    samples, levels = samples_of(RAMP[..., None], bits)
    samples = np.concatenate([samples, np.full_like(samples, 2**bits - 1)], 2)
    for file in tiffs(photometric=(0, 1), bits=(bits,), extra=((extra,),), **LAYOUTS):
        done = read_or_refused(file.file((samples, ())), 255 - levels if file.photometric == 0 else levels)
        assert done or file != Tiff(1, 8, extra=(extra,))


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_and_lab_tiff(bits):
    inks, levels = samples_of(np.concatenate([COLOURS, np.zeros((9, 13, 1))], 2), bits)
    for file in tiffs(photometric=(5,), bits=(bits,), **LAYOUTS):
        assert read_or_refused(file.file((inks, ())), 255 - levels[..., :3]) or file.fill_order + file.planar > 2
    lightness, _ = samples_of(RAMP, bits)
    neutral = np.stack([lightness, 0 * lightness, 0 * lightness], 2)
    luminance = np.where(RAMP > 0.08, ((RAMP * 100 + 16) / 116) ** 3, RAMP * 100 / 903.3)  # CIE 1976
    grey = np.where(luminance > 0.0031308, 1.055 * luminance ** (1 / 2.4) - 0.055, 12.92 * luminance) * 255  # sRGB
    for file in tiffs(photometric=(8,), bits=(bits,), **LAYOUTS):
        done = read_or_refused(file.file((neutral, ())), grey[..., None], tolerance=3)
        assert done or file != Tiff(8, 8)


def png(bits, colour_type, samples, transparent=None):
    """Bytes of a PNG, colour types as in its specification: 0 grey, 2 RGB, 4 grey with alpha, 6 RGBA."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = samples.shape
    rows = b"".join(b"\0" + Tiff(bits=bits, order=">").packed(row.reshape(-1)) for row in samples)
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    if transparent is not None:
        content += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("bits", "colour_type"), [*((b, 0) for b in (1, 2, 4, 8, 16)), *product((8, 16), (2, 4, 6))])
def test_png(bits, colour_type):
    colour = COLOURS if colour_type & 2 else RAMP[..., None]
    samples, levels = samples_of(colour, bits)
    if colour_type < 4:
        np.testing.assert_allclose(read(png(bits, colour_type, samples)), levels + np.zeros(3), atol=1)
        transparent = samples[3, 4]
        paper = np.where((samples == transparent).all(2, keepdims=True), 255, levels)
        np.testing.assert_allclose(read(png(bits, colour_type, samples, transparent)), paper + np.zeros(3), atol=1)
    else:
        samples = np.concatenate([samples, samples_of(RAMP[..., None], bits)[0]], 2)
        composed = levels * RAMP[..., None] + 255 * (1 - RAMP[..., None])
        np.testing.assert_allclose(read(png(bits, colour_type, samples)), composed + np.zeros(3), atol=2)


@pytest.mark.parametrize("largest", [1, 100, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True], ids=["binary", "plain"])
def test_netpbm_of_any_largest_value(largest, plain):
    for picture, kind in ((RAMP[..., None], 2), (COLOURS, 3)):
        samples = np.round(picture * largest).astype(int)
        data = samples.astype(">u2" if largest > 255 else "u1").tobytes()
        body = " ".join(map(str, samples.reshape(-1))).encode() if plain else data
        content = f"P{kind if plain else kind + 3} 13 9 {largest}\n".encode() + body
        np.testing.assert_allclose(read(content), samples / largest * 255 + np.zeros(3), atol=1)


def jpeg_2000(bits, samples):
    """A JPEG 2000 codestream of one component: of more bits first, so that its header's number can be lowered."""
    written = 8 if bits <= 8 else 16
    file = io.BytesIO()
    shifted = samples[..., 0] + 2 ** (written - 1) - 2 ** (bits - 1)  # samples are stored less the middle of the range
    Image.fromarray(shifted.astype(f"u{written // 8}")).save(file, "JPEG2000", no_jp2=True, irreversible=False)
    content = bytearray(file.getvalue())
    assert content[42] == written - 1
    content[42] = bits - 1
    return bytes(content)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 16])
def test_jpeg_2000(bits):
    samples, levels = samples_of(RAMP[..., None], bits)
    assert read_or_refused(jpeg_2000(bits, samples), levels) == (bits >= 8)


WRITTEN = {
    "bmp": ["1", "L", "P", "RGB", "RGBA"],
    "gif": ["1", "L", "P", "RGB"],
    "jp2": ["L", "LA", "I;16", "RGB", "RGBA"],
    "jpg": ["L", "RGB", "CMYK", "YCbCr"],
    "png": ["1", "L", "LA", "P", "I;16", "RGB", "RGBA"],
    "ppm": ["1", "L", "I;16", "RGB"],
    "tga": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "tif": ["1", "L", "LA", "P", "PA", "I;16", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"],
    "webp": ["L", "LA", "RGB", "RGBA"],
}


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, modes in WRITTEN.items() for mode in modes])
def test_what_pillow_writes(tmp_path, name, mode):
    """The modes that Pillow writes into a format without a loss of levels, JPEG's apart."""
    grey = Image.fromarray(np.round(RAMP * 255).astype(np.uint8)).resize((64, 64))
    expected = np.asarray(grey, float)
    image = grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "LAB") else grey
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode in ("P", "PA"):
        image = Image.frombytes("P", grey.size, grey.tobytes())
        image.putpalette([level for level in range(256) for _ in range(3)])
        image = image.convert(mode)
    elif mode == "1":
        image = grey.convert("1")
        expected = np.asarray(image) * 255.0
    elif image is grey:
        image = grey.convert(mode)
    image.save(tmp_path / f"scan.{name}", **({"lossless": True} if name == "webp" else {}))
    opened = np.asarray(open_image(tmp_path / f"scan.{name}"), float)
    np.testing.assert_allclose(opened, expected[..., None] + np.zeros(3), atol=4 if name == "jpg" else 2)


@pytest.mark.parametrize("mode", ["1", "L", "La", "I;16", "I;16L", "I;16B", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_images_in_memory(mode):
    """What callers of the Python API have."""
    grey = np.round(RAMP * 255).astype(np.uint8)
    steps = {"La": "LA", "RGBa": "RGBA", "HSV": "RGB", "YCbCr": "RGB", "CMYK": "RGB", "RGBX": "RGB"}
    image = Image.fromarray(grey)
    if mode.startswith("I;16"):
        image = Image.frombytes(mode, (13, 9), (grey.astype(">u2" if mode == "I;16B" else "<u2") * 257).tobytes())
    elif mode in steps:
        image = image.convert(steps[mode]).convert(mode)
    levels = grey if mode != "1" else np.asarray(image := image.convert("1")) * 255
    np.testing.assert_allclose(np.asarray(to_rgb(image)).astype(int), levels[..., None] + np.zeros(3), atol=2)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_in_memory_of_unknown_range_are_refused(mode):
    with pytest.raises(InputError, match="32-bit pixels of unknown range"):
        to_rgb(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_of_8_bit_levels_is_taken_as_it_is(bits):
    """Old programs write a TIFF's colour map so, and viewers built on libtiff read it."""
    palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3))
    samples = np.random.default_rng(0).integers(0, 2**bits, (9, 13, 1))
    colour_map = (320, 3, tuple(map(int, palette.T.reshape(-1))))
    content = Tiff(photometric=3, bits=bits, more=(colour_map,)).file((samples, ()))
    np.testing.assert_array_equal(read(content), palette[samples[..., 0]])
