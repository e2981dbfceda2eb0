"""The pages of a PDF as a source: what is drawn of a page, how large, and the one line for what cannot be drawn."""

import zlib

import numpy as np
import pytest

from calib_data.sources import open_pictures
from calib_data.sources.pdf import DPI, MAX_PIXELS, draw_page, page_count
from console.errors import InputError
from runtime.sizes import CALL_PATCHES

from .pages import open_all, picture
from .pdf_files import (
    APPEARANCE,
    FORM,
    VALUE,
    annotation,
    encrypted,
    field,
    page_file,
    printed,
    stream,
    text,
)

STAMP = f"/Subtype /Stamp {APPEARANCE}"
LAYERS = "/OCProperties << /OCGs [8 0 R] /D << {} >> >>"
LAYER = "<< /Type /OCG /Name (layer) {} >>"


def grey(image):
    return np.asarray(image.convert("L"), float)


def ink(image):
    """Dark pixels right of x = 96 points, where the value of a field is."""
    return int((grey(image)[:, 200:] < 128).sum())


def test_pdf_pages_are_drawn_upright_and_apart(tmp_path):
    pages = [picture(index).resize((448, 224)) for index in range(24)]
    path = tmp_path / "scan.pdf"
    pages[0].save(path, save_all=True, append_images=pages[1:], resolution=150)
    parts = open_all(path)
    documents = {document.name: document for part in parts.values() for document in part}
    assert sorted(documents) == sorted(f"scan.pdf/{number}" for number in range(1, 25))
    for number, page in enumerate(pages, start=1):
        image = documents[f"scan.pdf/{number}"].image
        assert image.size == page.size
        apart = [np.abs(np.asarray(image, float) - np.asarray(other, float)).mean() for other in pages]
        assert int(np.argmin(apart)) == number - 1
        assert apart[number - 1] < 16  # the PDF holds a JPEG of a noisy page


@pytest.mark.parametrize(
    "entries",
    [
        f"/FT /Tx {APPEARANCE}",
        f"/FT /Tx /V ({VALUE})",
        f"/FT /Tx /Ff 4096 /V ({VALUE})",
        f"/FT /Ch /Ff 131072 /V (b) /Opt [[(a) (1)] [(b) ({VALUE})]]",
        f"/FT /Btn /V /On /AS /On {APPEARANCE.replace('6 0 R', '<< /On 6 0 R >>')}",
        f"/FT /Btn /Ff 65536 /MK << /CA ({VALUE}) >>",
        f"/FT /Sig {APPEARANCE}",
    ],
    ids=["appearance", "no-appearance", "several-lines", "combo-box", "checkbox", "button", "signature"],
)
@pytest.mark.parametrize("form", [FORM, "/AcroForm << /Fields [] >>", ""], ids=["form", "not-listed", "no-form"])
def test_a_filled_field_reads_like_print(draw, entries, form):
    assert ink(draw(page_file(catalog=form, annotation=field(entries)))) > 0.9 * ink(draw(printed())) > 500


def test_a_checkbox_without_appearance_is_ticked(draw):
    on = field("/FT /Btn /V /Yes /AS /Yes /MK << /CA (4) >>")
    assert ink(draw(page_file(catalog=FORM, annotation=on))) > 100
    off = field(f"/FT /Btn /V /Off /AS /Off {APPEARANCE.replace('6 0 R', '<< /Yes 6 0 R >>')}")
    assert ink(draw(page_file(catalog=FORM, annotation=off))) == 0


def test_a_field_has_its_colour(draw):
    red = field(f"/FT /Tx /V ({VALUE})").replace("14 Tf 0 g", "14 Tf 1 0 0 rg")
    assert np.asarray(draw(page_file(catalog=FORM, annotation=red))).min((0, 1)).tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "entries",
    [
        STAMP,
        f"/Subtype /FreeText /DA (/F1 14 Tf 0 g) /Contents ({VALUE})",
        "/Subtype /Highlight /QuadPoints [100 88 200 88 100 64 200 64] /C [0 0 0]",
        "/Subtype /Ink /InkList [[100 64 200 88]] /C [0 0 0] /BS << /W 3 >>",
        "/Subtype /Square /C [0 0 0] /BS << /W 3 >>",
    ],
    ids=["stamp", "free-text", "highlight", "ink", "square"],
)
def test_an_annotation_is_drawn(draw, entries):
    assert ink(draw(page_file(annotation=annotation(entries)))) > 500


@pytest.mark.parametrize(
    ("flags", "shown"), [(0, True), (4, True), (2, False), (32, False), (36, False)],
    ids=["screen-only", "print", "hidden", "no-view", "print-only"],
)  # fmt: skip
@pytest.mark.parametrize("make", [annotation, field])
def test_what_a_viewer_hides_on_screen_is_hidden(draw, make, flags, shown):
    entries = STAMP if make is annotation else f"/FT /Tx /V ({VALUE})"
    assert (ink(draw(page_file(catalog=FORM, annotation=make(entries, flags)))) > 500) == shown


@pytest.mark.parametrize(
    ("default", "usage", "shown"),
    [
        ("", "", True),
        ("/OFF [8 0 R]", "", False),
        ("/BaseState /OFF", "", False),
        ("/BaseState /OFF /ON [8 0 R]", "", True),
        ("", "/Usage << /Print << /PrintState /OFF >> >>", True),
        ("", "/Usage << /View << /ViewState /OFF >> >>", False),
    ],
)
def test_layers_are_drawn_as_on_screen(draw, default, usage, shown):
    content = f"/OC /Layer BDC {text(VALUE, 102, 70)} EMC"
    page = page_file(content, catalog=LAYERS.format(default), layer=LAYER.format(usage))
    assert (ink(draw(page)) > 500) == shown


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_rotation_and_crop_turn_fields_too(draw, angle):
    """A page that the file turns equals the upright page, turned by NumPy, up to how edges of letters are smoothed."""
    parts = {"catalog": FORM, "annotation": field(f"/FT /Tx {APPEARANCE}")}
    # 24 points are 50 pixels: box and crop end between pixels.
    upright = grey(draw(page_file(text("TOTAL:", 30, 70), box="0 0 240 96", **parts)))[:100]
    turned = draw(
        page_file(text("TOTAL:", 30, 70), box="0 0 240 96", page=f"/CropBox [0 48 240 96] /Rotate {angle}", **parts)
    )
    expected = np.rot90(upright, -angle // 90)
    assert turned.size == expected.shape[::-1]
    assert np.abs(grey(turned) - expected).mean() < 3 < np.abs(255 - expected).mean()


def test_a_large_page_is_drawn_smaller(draw):
    assert MAX_PIXELS == CALL_PATCHES * 14**2
    for box, aspect in (
        ("0 0 14400 14400", 1),
        ("0 0 200000 200000", 1),
        ("0 0 14400 3600", 4),
        ("0 0 842 1191", 842 / 1191),
    ):
        image = draw(page_file(box=box))
        assert 0.99 * MAX_PIXELS < image.width * image.height <= MAX_PIXELS
        assert image.width / image.height == pytest.approx(aspect, rel=0.002)


def test_a_thin_or_tiny_page_is_within_bounds(draw):
    thin = draw(page_file(box="0 0 14400 10"))
    assert (thin.width, thin.height) == (pytest.approx(30000, abs=1), 21)
    assert draw(page_file(box="0 0 1 1")).size == (3, 3)
    assert draw(page_file(box="0 0 0.1 0.1")).size == (1, 1)
    thin = draw(page_file(box="0 0 9000000 0.01"))
    assert thin.height <= 2 and thin.width * thin.height <= MAX_PIXELS
    assert draw(page_file(box="0 0 595 842")).size == (1240, 1755)
    assert DPI == 150


@pytest.mark.parametrize("password", ["", "secret"])
def test_encryption_without_a_password_is_no_obstacle(tmp_path, password):
    path = tmp_path / "locked.pdf"
    path.write_bytes(encrypted(password))
    if not password:
        assert ink(draw_page(path, 0)) == ink(draw_page(path, 0)) > 500
        return
    with pytest.raises(InputError, match=r"locked\.pdf: cannot be read as a PDF \(.*password.*encrypted"):
        page_count(path)


def scan(codec, data, side):
    """A page that shows a grey image of side x side pixels."""
    entries = f"/Width {side} /Height {side} /BitsPerComponent 8 /ColorSpace /DeviceGray /Filter /{codec}"
    image = stream(data, f"/Type /XObject /Subtype /Image {entries}")
    return page_file("q 220 0 0 100 0 0 cm /I Do Q", page="/Resources << /XObject << /I 9 0 R >> >>", extra=[image])


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path):
    """PDFium takes 37 bytes a pixel for JPEG 2000, but hardly any for codecs that it reads row by row."""
    path = tmp_path / "scan.pdf"
    path.write_bytes(scan("JPXDecode", bytes(64), 20000))
    with pytest.raises(
        InputError, match=r"scan\.pdf: page 1: has an image of 20000 x 20000 pixels, more than 89478485; "
    ):
        draw_page(path, 0)
    path.write_bytes(scan("FlateDecode", zlib.compress(bytes(100)), 20000))
    assert draw_page(path, 0).size == (459, 209)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "cannot be read as a PDF, it is empty; copy or download it again"),
        (
            lambda content: content[:-100],
            r"cannot be read as a PDF, its end \(%%EOF\) is missing; copy or download it again",
        ),
        (lambda content: b"%PDF-1.7\n%%EOF\n", "cannot be read as a PDF"),
        (lambda content: b"a letter", "its end .* is missing"),
        (lambda content: content.replace(b"/Kids [3 0 R]", b"/Kids [9 0 R]"), "page 1 cannot be drawn"),
    ],
    ids=["empty", "cut", "no-objects", "text", "no-page"],
)
def test_one_line_for_what_is_no_pdf(tmp_path, damage, message):
    path = tmp_path / "scan.pdf"
    path.write_bytes(damage(printed()))
    with pytest.raises(InputError, match=message) as caught:
        draw_page(path, page_count(path) - 1)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_dynamic_xfa_form_is_refused(tmp_path):
    """Its only page says that another viewer is needed. A static one has its fields in the PDF too."""
    path = tmp_path / "form.pdf"
    form = FORM.replace("<< /Fields", "<< /XFA 9 0 R /Fields")
    parts = {"annotation": field(f"/FT /Tx /V ({VALUE})"), "extra": [stream("<xdp/>")]}
    path.write_bytes(page_file(catalog=f"{form} /NeedsRendering true", **parts))
    with pytest.raises(InputError, match=r"form\.pdf: is a dynamic XFA form.*; print it to a PDF"):
        page_count(path)
    path.write_bytes(page_file(catalog=form, **parts))
    assert ink(draw_page(path, 0)) > 500


def test_pages_are_drawn_one_at_a_time(tmp_path):
    """Thousands would fill the memory: the second page, which is missing, is not looked at before its turn."""
    path = tmp_path / "book.pdf"
    path.write_bytes(printed().replace(b"/Kids [3 0 R] /Count 1", b"/Kids [3 0 R 9 0 R] /Count 2"))
    pages = open_pictures(path)
    name, picture = next(pages)
    assert name == f"{path}: page 1"
    assert ink(picture) > 500
    with pytest.raises(InputError, match=r"book\.pdf: page 2 cannot be drawn"):
        next(pages)


KOREAN_FONT = (
    "<< /Type /Font /Subtype /Type0 /BaseFont /Batang /Encoding /UniKS-UCS2-H /DescendantFonts [<< /Type /Font "
    "/Subtype /CIDFontType2 /BaseFont /Batang /CIDSystemInfo << /Registry (Adobe) /Ordering (Korea1) /Supplement 1 >> "
    "/FontDescriptor << /Type /FontDescriptor /FontName /Batang /Flags 4 /FontBBox [0 0 1000 1000] /Ascent 800 "
    "/Descent -200 /CapHeight 700 /StemV 80 /ItalicAngle 0 >> >>] >>"
)


@pytest.mark.parametrize("where", ["page", "field"])
def test_korean_text_is_drawn_or_said_to_be_missing(tmp_path, capsys, where):
    """PDFium leaves it out where neither the file nor the system has a Korean font."""
    path = tmp_path / "letter.pdf"
    hangul = "합계".encode("utf-16-be").hex()
    if where == "page":
        font = "/Resources << /Font << /F1 9 0 R >> >>"
        path.write_bytes(page_file(f"BT /F1 14 Tf 102 70 Td <{hangul}> Tj ET", page=font, extra=[KOREAN_FONT]))
    else:
        path.write_bytes(page_file(catalog=FORM, annotation=field(f"/FT /Tx /V <feff{hangul}>")))
    drawn = ink(draw_page(path, 0)) > 100
    draw_page(path, 0)
    said = (
        "letter.pdf: page 1: neither the PDF nor this system has a Korean font, so text may be missing; install one\n"
    )
    assert capsys.readouterr().err == ("" if drawn else f"{tmp_path}/{said}")
    path.with_name("english.pdf").write_bytes(printed())
    draw_page(path.with_name("english.pdf"), 0)
    assert capsys.readouterr().err == ""
