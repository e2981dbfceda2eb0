"""Many pictures: a PDF's pages in one question."""

import subprocess
import sys

import pytest

from calib_data.sources import open_documents
from runtime.sampling import greedy

from .commands import ENVIRONMENT, assert_one_line, generated

pypdfium2 = pytest.importorskip("pypdfium2")


@pytest.fixture(scope="module")
def pictures():
    return [document.image for document in open_documents(split="evaluation", count=3, seed=5, kind="line")]


@pytest.fixture
def scan(pictures, tmp_path):
    """A PDF of three lines, none of which is another's size."""
    pages = [page.crop((0, 0, 200 + 50 * number, page.height)) for number, page in enumerate(pictures)]
    pages[0].save(tmp_path / "Scan.PDF", "PDF", save_all=True, append_images=pages[1:], resolution=150)
    return tmp_path / "Scan.PDF"


def drawn(path):
    """Pages as PDFium draws them at 150 DPI."""
    with pypdfium2.PdfDocument(path) as pdf:
        return [page.render(scale=150 / 72).to_pil().convert("RGB") for page in pdf]


def test_a_pdf_is_its_pages_in_order(command, exported, reader, scan, pictures):
    pictures[0].save(scan.parent / "line.png")
    arguments = "--model", exported("fp16"), "--temperature", 0, "--max-new-tokens", 20
    answer = generated(command, *arguments, "--image", scan, "--image", scan.parent / "line.png")
    pages = drawn(scan)
    assert len({page.size for page in pages}) == 3
    prompt = reader.prompt("Read the text.", [*pages, pictures[0]])
    assert answer["prompt_tokens"] == len(prompt.ids)
    assert answer["tokens"] == list(reader.generate(prompt, greedy, 20))
    turned = reader.prompt("Read the text.", [*reversed(pages), pictures[0]])
    assert answer["tokens"] != list(reader.generate(turned, greedy, 20))


def damaged(path):
    path.write_bytes(b"%PDF-1.4 and nothing more")


def empty(path):
    pypdfium2.PdfDocument.new().save(path)


def strip(path):
    pdf = pypdfium2.PdfDocument.new()
    pdf.new_page(200, 100)
    pdf.new_page(1, 500)
    pdf.save(path)


BAD_PDFS = {
    "missing": (lambda path: None, "scan.pdf: no such file"),
    "a folder": (lambda path: path.mkdir(), "scan.pdf: is not a file"),
    "damaged": (damaged, "scan.pdf: cannot be read as a PDF"),
    "without pages": (empty, "scan.pdf: cannot be read as a PDF"),
    "a strip": (strip, "scan.pdf: page 2: 3 x 1042 pixels, one side is more than 200 times the other"),
}


@pytest.mark.parametrize("case", BAD_PDFS)
def test_a_bad_pdf_is_named(case, command, exported, tmp_path):
    make, says = BAD_PDFS[case]
    make(tmp_path / "scan.pdf")
    assert_one_line(command("generate", "--model", exported("fp16"), "--image", tmp_path / "scan.pdf"), says)


WITHOUT = "import runpy, sys; sys.modules['pypdfium2'] = None; runpy.run_module('runtime', run_name='__main__')"


def test_without_pypdfium2_the_extra_is_named(exported, scan):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "generate", "--model", str(exported("fp16")), "--image", scan.name],
        cwd=scan.parent,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    says = "Scan.PDF: reading PDF files needs pypdfium2, install the extra 'data'"
    assert_one_line((done.returncode, done.stdout, done.stderr), says)
