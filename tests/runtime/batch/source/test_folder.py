"""Images and PDFs in folders: which pages there are, in which order, and what they show."""

import os
import unicodedata

import numpy as np
import pypdfium2
import pytest
from PIL import Image

from console.errors import InputError
from runtime.batch.source.folder import Folder
from runtime.batch.source.page import PART_PAGES
from runtime.batch.storage import Storage

from ....calib_data.sources.pdf_files import annotation, encrypted, page_file
from ..listing import listed_pages, pixels, same


def folder(path, *, per_document=False) -> Folder:
    return Folder(Storage.at(path), "What is this?", per_document)


def picture(seed, width=40, height=30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)
    return path


def write_pdf(path, pages):
    """A PDF by Pillow, each page of another size."""
    first, *others = (picture(number, 40 + 5 * (number % 7), 30) for number in range(pages))
    first.save(path, "PDF", save_all=True, append_images=others, resolution=150)
    return path


def drawn(path):
    """Pages as PDFium draws them at 150 DPI."""
    with pypdfium2.PdfDocument(path) as pdf:
        return [np.asarray(page.render(scale=150 / 72, rev_byteorder=True).to_pil().convert("RGB")) for page in pdf]


def test_images_of_all_folders_in_order_and_nothing_else(tmp_path):
    names = ["b.png", "a.PNG", "c/2.png", "c/10.png", "c/d/e.bmp", "a/z.tiff", "a.d/x.png"]
    for seed, name in enumerate(names):
        save(tmp_path / name, seed)
    for other in (".hidden.png", ".folder/1.png", "c/.part.png"):
        save(tmp_path / other)
    for text in ("notes.txt", "c/a.json", "answers.pdf.txt", "png"):
        (tmp_path / text).write_text("no picture")
    (tmp_path / "empty").mkdir()
    pages = listed_pages(folder(tmp_path))
    assert [page.document for page in pages] == [
        *("a.PNG", "b.png"),
        "a/z.tiff",
        "a.d/x.png",
        *("c/10.png", "c/2.png"),
        "c/d/e.bmp",
    ]
    assert {(page.page, page.prompt) for page in pages} == {(1, "What is this?")}
    for page in pages:
        assert same(pixels(page), [np.asarray(picture(names.index(page.document)))])


def test_what_systems_leave_is_no_page(tmp_path):
    """Thumbnails of a Synology, and bins of Windows and of a NAS, are next to the scans of whoever has them."""
    save(tmp_path / "1.png")
    for name in ("@eaDir/1.png/SYNOPHOTO_THUMB_M.png", "$RECYCLE.BIN/old.png", "#recycle/a.png", "__MACOSX/2.png"):
        save(tmp_path / name)
    assert [page.document for page in listed_pages(folder(tmp_path))] == ["1.png"]


def test_links_to_files_are_read_and_links_to_folders_are_not(tmp_path):
    """A link to a folder above would never end."""
    scans = tmp_path / "scans"
    save(scans / "a.png", 3)
    save(tmp_path / "elsewhere" / "far.png", 4)
    (scans / "b.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    (scans / "above").symlink_to(tmp_path)
    (scans / "elsewhere").symlink_to(tmp_path / "elsewhere")
    pages = listed_pages(folder(scans))
    assert [page.document for page in pages] == ["a.png", "b.png"]
    assert same(pixels(pages[1]), [np.asarray(picture(4))])


def test_a_link_to_nothing_is_a_page_with_its_error(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    save(tmp_path / "b.png")
    lost, found = listed_pages(folder(tmp_path))
    with pytest.raises(InputError, match=r"a\.png: no such file or directory"):
        pixels(lost)
    assert same(pixels(found), [np.asarray(picture(0))])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_hangul_names_stay_as_the_disk_has_them(form, tmp_path):
    name = unicodedata.normalize(form, "영수증/첫째 장.png")
    save(tmp_path / name, 2)
    (page,) = listed_pages(folder(tmp_path))
    assert page.document == name
    assert same(pixels(page), [np.asarray(picture(2))])


def test_a_name_that_is_not_utf8_is_read(tmp_path):
    save(tmp_path / "a.png", 1).rename(tmp_path / b"a\xff.png".decode("utf-8", "surrogateescape"))
    (page,) = listed_pages(folder(tmp_path))
    assert same(pixels(page), [np.asarray(picture(1))])


def test_pages_of_a_pdf_are_those_pdfium_draws(tmp_path):
    expected = drawn(write_pdf(tmp_path / "Scan.PDF", 5))
    pages = listed_pages(folder(tmp_path))
    assert [(page.document, page.page) for page in pages] == [("Scan.PDF", number) for number in range(1, 6)]
    assert len({picture.shape for picture in expected}) == 5
    for page, picture in zip(pages, expected, strict=True):
        assert same(pixels(page), [picture])
    assert [name for name, _ in pages[2].pictures()] == [f"{tmp_path}/Scan.PDF: page 3"]


@pytest.mark.parametrize("count", [1, PART_PAGES, PART_PAGES + 1, 2 * PART_PAGES + 3])
def test_a_long_pdf_is_several_parts(count, tmp_path):
    write_pdf(tmp_path / "book.pdf", count)
    save(tmp_path / "a.png")
    source = folder(tmp_path)
    listed = list(source.parts())
    assert all(one.pages == one.part.count <= PART_PAGES for one in listed)
    assert len(listed) == 1 + -(-count // PART_PAGES)
    numbers = [(page.document, page.page) for one in listed for page in source.pages(one.part)]
    assert numbers == [("a.png", 1), *(("book.pdf", number) for number in range(1, count + 1))]


def test_per_document_a_pdf_is_one_row_with_all_its_pages(tmp_path):
    expected = drawn(write_pdf(tmp_path / "b.pdf", 3))
    save(tmp_path / "a.png", 7)
    source = folder(tmp_path, per_document=True)
    assert [(one.part.count, one.pages) for one in source.parts()] == [(1, 1), (1, 3)]
    image, document = listed_pages(source)
    assert (image.document, image.page) == ("a.png", 1)
    assert (document.document, document.page, document.prompt) == ("b.pdf", None, "What is this?")
    assert same(pixels(document), expected)
    assert [name for name, _ in document.pictures()] == [f"{tmp_path}/b.pdf: page {number}" for number in (1, 2, 3)]


@pytest.mark.parametrize("per_document", [False, True])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read as a PDF, it is empty"),
        (b"%PDF-1.4 and nothing more", r"its end \(%%EOF\) is missing"),
        (b"%PDF-1.4 %%EOF", "cannot be read as a PDF"),
    ],
)
def test_a_damaged_pdf_is_one_row_with_its_error(content, says, per_document, tmp_path):
    (tmp_path / "a.pdf").write_bytes(content)
    write_pdf(tmp_path / "b.pdf", 2)
    pages = listed_pages(folder(tmp_path, per_document=per_document))
    assert [page.document for page in pages] == ["a.pdf", *["b.pdf"] * (1 if per_document else 2)]
    assert pages[0].page is None
    with pytest.raises(InputError, match=says) as caught:
        pixels(pages[0])
    assert str(caught.value).startswith(f"{tmp_path}/a.pdf: ")
    assert len(pixels(pages[1])) == (2 if per_document else 1)


def test_a_pdf_without_pages_is_one_row_with_its_error(tmp_path):
    pypdfium2.PdfDocument.new().save(tmp_path / "a.pdf")
    (page,) = listed_pages(folder(tmp_path))
    with pytest.raises(InputError, match=r"a\.pdf: "):
        pixels(page)


def test_a_damaged_image_is_a_page_with_its_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    (page,) = listed_pages(folder(tmp_path))
    with pytest.raises(InputError, match=r"a\.png: is not an image"):
        pixels(page)


def test_a_single_file_is_a_source(tmp_path):
    save(tmp_path / "other.png")
    (page,) = listed_pages(folder(save(tmp_path / "one.png", 9)))
    assert (page.document, page.page) == ("one.png", 1)
    assert same(pixels(page), [np.asarray(picture(9))])
    expected = drawn(write_pdf(tmp_path / "two.pdf", 2))
    pages = listed_pages(folder(tmp_path / "two.pdf"))
    assert [(page.document, page.page) for page in pages] == [("two.pdf", 1), ("two.pdf", 2)]
    assert same([*pixels(pages[0]), *pixels(pages[1])], expected)


def test_errors_of_another_file_system_name_the_file_there(tmp_path):
    """A worker reads a copy, whose path says nothing to anyone."""
    url = f"memory://{tmp_path}/scans"
    storage = Storage.at(url)
    write_pdf(tmp_path / "good.pdf", 2)
    storage.write("a/bad.pdf", b"%PDF-1.4 and nothing more")
    storage.write("a/bad.png", b"no picture")
    storage.write("a/good.pdf", (tmp_path / "good.pdf").read_bytes())
    document, image, *good = listed_pages(Folder(storage, "?", False))
    for page, name in ((document, "bad.pdf"), (image, "bad.png")):
        with pytest.raises(InputError) as caught:
            pixels(page)
        assert str(caught.value).startswith(f"{url}/a/{name}: ")
    assert same([*pixels(good[0]), *pixels(good[1])], drawn(tmp_path / "good.pdf"))


def test_a_pipe_in_the_name_of_a_pdf_is_a_row_with_its_error(tmp_path):
    """Nobody writes to it: a listing that opens it would never end."""
    os.mkfifo(tmp_path / "a.pdf")
    (page,) = listed_pages(folder(tmp_path))
    with pytest.raises(InputError, match=r"a\.pdf: is no regular file"):
        pixels(page)


@pytest.mark.parametrize("per_document", [False, True])
def test_an_encrypted_pdf_is_read_unless_it_asks_for_a_password(per_document, tmp_path):
    (tmp_path / "a.pdf").write_bytes(encrypted(""))
    (tmp_path / "b.pdf").write_bytes(encrypted("secret"))
    opened, locked = listed_pages(folder(tmp_path, per_document=per_document))
    assert same(pixels(opened), drawn(tmp_path / "a.pdf"))
    with pytest.raises(InputError, match=r"b\.pdf: cannot be read as a PDF \(.*password.*encrypted"):
        pixels(locked)


def test_what_is_neither_image_nor_pdf_is_said(tmp_path, capsys):
    save(tmp_path / "a.png")
    for name in ("b.docx", "c.xlsx"):
        (tmp_path / name).write_bytes(b"")
    assert len(list(folder(tmp_path).parts())) == 1
    passed = "2 files are neither images nor PDFs and are not read, the first is b.docx"
    assert capsys.readouterr().err == f"{tmp_path}: {passed}\n"


def test_what_pages_lack_is_said_once_by_the_place_of_the_first(capsys):
    """Not by that of a local copy, nor once for each of a million files."""
    storage = Storage("memory://stamped")
    for number in range(3):
        storage.write(f"{number}.pdf", page_file(annotation=annotation("/Subtype /Stamp")))
    source = Folder(storage, None, per_document=False)
    for listed in source.parts():
        for page in source.pages(listed.part):
            assert len(list(page.pictures())) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("memory://stamped/0.pdf: page 1: ")
