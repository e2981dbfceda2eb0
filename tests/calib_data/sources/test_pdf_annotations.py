"""Fields and annotations that lack an appearance: drawn where PDFium can be brought to it, else said."""

import io

import numpy as np
import pypdfium2
import pytest

from calib_data.sources.pdf import draw_page, page_count, say_attached

from .pdf_files import FORM, VALUE, annotation, field, page_file, pdf_file, printed, stream

FORM_XOBJECT = "/Type /XObject /Subtype /Form /BBox [0 0 100 24]"


@pytest.fixture
def ink(draw):
    """Dark pixels of a page, given as the bytes of its file."""
    return lambda content: int((np.asarray(draw(content).convert("L")) < 128).sum())


@pytest.mark.parametrize("appearance", ["/AP ()", "/AP << >>", "/AP << /N null >>", "/AP << /N 9 0 R >>"])
@pytest.mark.parametrize("empty", ["", "/Tx BMC EMC", "0.9 g 0 0 100 24 re f /Tx BMC q Q EMC"])
@pytest.mark.parametrize("value", [f"/FT /Tx /V ({VALUE})", f"/FT /Ch /Ff 131072 /V ({VALUE}) /Opt [(1) ({VALUE})]"])
def test_a_value_is_drawn_where_the_appearance_was_left_empty(ink, appearance, empty, value):
    """As pdfrw's usual recipe and forms filled by their values alone have it."""
    content = page_file(catalog=FORM, annotation=field(f"{value} {appearance}"), extra=[stream(empty, FORM_XOBJECT)])
    assert ink(content) > 0.9 * ink(printed())


def test_an_appearance_that_draws_text_is_kept(ink):
    """As viewers do: it may format the value, as 96200 to 96,200."""
    written = page_file(catalog=FORM, annotation=field("/FT /Tx /V (1) /AP << /N 6 0 R >>"))
    assert ink(written) > 0.9 * ink(printed())


@pytest.mark.parametrize("state", ["Yes", "On", "1", "#EC#98#88"])
@pytest.mark.parametrize("flags", [0, 49152], ids=["checkbox", "radio"])
def test_a_ticked_button_without_appearance_is_ticked_whatever_its_state_is_called(ink, state, flags):
    button = f"/FT /Btn /Ff {flags} /V /{state} /AS /{{}} /MK << /CA ({'l' if flags else '4'}) >>"
    assert ink(page_file(catalog=FORM, annotation=field(button.format(state)))) > 100
    assert ink(page_file(catalog=FORM, annotation=field(button.format("Off")))) == 0


@pytest.mark.parametrize(
    ("entries", "kind"),
    [
        ("/Subtype /Line /L [100 64 200 88] /C [0 0 0]", "a line"),
        ("/Subtype /Polygon /Vertices [100 64 200 88 150 64] /C [0 0 0]", "a polygon"),
        ("/Subtype /PolyLine /Vertices [100 64 200 88 150 64] /C [0 0 0]", "a polyline"),
        ("/Subtype /Stamp /Name /Approved", "a stamp"),
        ("/Subtype /FreeText /DA (/Helv 14 Tf 0 g) /Contents <FEFFD569ACC4>", "a text"),
    ],
)
def test_what_pdfium_does_not_draw_is_said_once_a_file(tmp_path, capsys, entries, kind):
    path = tmp_path / "note.pdf"
    page = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 220 100] /Annots [5 0 R] >>"
    pages = "<< /Type /Pages /Kids [3 0 R 4 0 R] /Count 2 >>"
    for flags, said in ((2, ""), (4, f"{path}: page 1: {kind} without an appearance is not drawn; ")):
        path.write_bytes(pdf_file("<< /Type /Catalog /Pages 2 0 R >>", pages, page, page, annotation(entries, flags)))
        for index in range(2):
            draw_page(path, index)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == bool(said)
        assert all(line.startswith(said) for line in lines)


def test_attached_pdfs_are_said_and_the_data_of_an_invoice_is_not(tmp_path, capsys):
    path = tmp_path / "portfolio.pdf"
    for name, said in (("invoice.xml", ""), ("Page 2.PDF", f"{path}: attached PDFs are not read: Page 2.PDF; ")):
        with pypdfium2.PdfDocument(printed()) as pdf:
            pdf.new_attachment(name).set_data(b"<xml/>")
            content = io.BytesIO()
            pdf.save(content)
        path.write_bytes(content.getvalue())
        assert page_count(path) == 1
        assert not capsys.readouterr().err  # a server counts pages of others, whose names are not for its log
        say_attached(path)
        lines = capsys.readouterr().err
        assert lines.startswith(said) if said else not lines
