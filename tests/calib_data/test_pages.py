"""Which page of an image file is its picture: thumbnails, masks and previews are none."""

import io

import numpy as np
import pytest
from PIL import Image

from calib_data.images import open_image, read_image
from console.errors import InputError

from .tiff_files import Tiff

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 16, 1))
SMALL = PICTURE[::4, ::4]
REDUCED, MASK, REDUCED_MASK, PAGE = ((254, 4, (bits,)) for bits in (1, 4, 5, 2))
OLD_REDUCED, OLD_PAGE = (255, 3, (2,)), (255, 3, (3,))
MASK_PHOTOMETRIC = (262, 3, (4,))


def read(*pages):
    return np.asarray(read_image(io.BytesIO(Tiff().file(*pages)), "scan.tif"))[..., :1]


@pytest.mark.parametrize(
    "further",
    [
        [(SMALL, [REDUCED])],
        [(SMALL, [OLD_REDUCED])],
        [(PICTURE, [MASK])],
        [(PICTURE, [MASK, MASK_PHOTOMETRIC])],
        [(PICTURE, [MASK_PHOTOMETRIC])],
        [(PICTURE[::2, ::2], [REDUCED]), (SMALL, [REDUCED]), (SMALL, [REDUCED_MASK, MASK_PHOTOMETRIC])],
    ],
    ids=["thumbnail", "old-thumbnail", "mask", "mask-not-readable", "mask-by-kind", "pyramid"],
)
@pytest.mark.parametrize("picture_tags", [[], [PAGE], [OLD_PAGE]], ids=["plain", "page", "old-page"])
def test_the_full_page_of_a_tiff_is_its_picture(further, picture_tags):
    picture = PICTURE, picture_tags
    np.testing.assert_array_equal(read(picture, *further), PICTURE)
    if MASK_PHOTOMETRIC not in further[0][1]:  # Pillow does not open a file that begins with one
        np.testing.assert_array_equal(read(*further, picture), PICTURE)
    with pytest.raises(InputError, match=r"^scan\.tif: has 2 pages; save one file a page, or a PDF$"):
        read(picture, *further, picture)


def test_a_page_of_its_own_is_read_whatever_it_calls_itself():
    np.testing.assert_array_equal(read((PICTURE, [REDUCED])), PICTURE)


def test_previews_alone_are_refused():
    """A camera's raw file: the picture is in a directory that Pillow does not visit."""
    with pytest.raises(InputError, match=r"^scan\.tif: has a preview of a picture that Pillow does not read"):
        read((SMALL, [REDUCED, (330, 4, (8,))]))
    with pytest.raises(InputError, match=r"^scan\.tif: has 2 pages"):
        read((SMALL, [REDUCED]), (PICTURE, [REDUCED]))


def test_a_thumbnail_inside_exif_is_no_page(tmp_path):
    """EXIF keeps it in a directory of its own, which is a TIFF with two."""
    photo = Image.effect_noise((64, 48), 30).convert("RGB")
    thumbnail = io.BytesIO()
    photo.resize((8, 6)).save(thumbnail, "JPEG")
    exif = Tiff().file((SMALL, ()), (SMALL, [REDUCED]))
    photo.save(tmp_path / "photo.jpg", exif=b"Exif\0\0" + exif + thumbnail.getvalue())
    assert open_image(tmp_path / "photo.jpg").size == (64, 48)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
def test_one_line_for_a_tiff_cut_short(compression, recwarn):
    file = io.BytesIO()
    Image.effect_noise((200, 200), 60).save(file, "TIFF", compression=compression)
    content = file.getvalue()
    for length in (1, 4, 100, len(content) // 2, len(content) - 200):
        with pytest.raises(InputError, match=r"^scan\.tif: (is not an image|cannot be read)"):
            read_image(io.BytesIO(content[:length]), "scan.tif")
    assert not recwarn.list  # Pillow's warnings are lines on stderr, too
