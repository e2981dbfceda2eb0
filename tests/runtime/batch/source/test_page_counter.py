"""Pages of PDFs, counted in another process that some of them end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pypdfium2
import pytest

from calib_data.sources.pdf import page_count
from console.errors import InputError
from runtime.batch.source.folder import Folder
from runtime.batch.source.page_counter import PageCounter
from runtime.batch.storage import Storage

from ..listing import listed_pages, pixels

# In place of PDFium, whose faults are mended when they are known.
HOSTILE = """
import ctypes, os, signal
from . import raw
class PdfiumError(Exception): pass
class PdfFormEnv:
    def __init__(self, *_): pass
class PdfDocument:
    def __init__(self, path):
        text = open(path).read()
        if "crash" in text:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in text:
            while True:
                ctypes.PyDLL(None).pause()  # as C code that never gives the interpreter back
        if "huge" in text:
            bytearray(8 << 30)
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def __len__(self): return 3
    def get_formtype(self): return 0
"""
RAW = """
FORMTYPE_XFA_FULL = 1
def FPDF_FORMFILLINFO(version): pass
def FPDFDOC_InitFormFillEnvironment(pdf, config): pass
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch) -> Path:
    """A folder of PDFs on which the PDFium of other processes fails."""
    package = tmp_path / "packages" / "pypdfium2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(HOSTILE)
    (package / "raw.py").write_text(RAW)
    monkeypatch.syspath_prepend(str(package.parent))
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a crash", "b good", "c hang", "d good", "e huge", "f good"):
        (folder / f"{name}.pdf").write_text(f"{name} %%EOF")
    return folder


def test_what_ends_the_process_is_an_error_of_its_file(hostile):
    says = {
        "a crash": "its pages cannot be counted, PDFium has crashed (SIGSEGV); print it to a new PDF",
        "c hang": "its pages cannot be counted, PDFium takes longer than 1 s; print it to a new PDF",
        "e huge": "its pages cannot be counted (MemoryError: )",
    }
    with PageCounter(1) as counter:
        for path in sorted(hostile.iterdir()):
            counter.start()
            if path.stem in says:
                with pytest.raises(InputError) as caught:
                    counter.count(path)
                assert str(caught.value) == f"{path}: {says[path.stem]}"
            else:
                assert counter.count(path) == 3


def test_a_listing_goes_on_after_a_pdf_that_crashes(hostile):
    for name in ("c hang", "e huge"):
        (hostile / f"{name}.pdf").unlink()
    source = Folder(Storage.at(hostile), None, False)
    listed = list(source.parts())
    assert [(one.part.file, one.part.count, one.part.error is None) for one in listed] == [
        ("a crash.pdf", 1, False),
        *((f"{name} good.pdf", 3, True) for name in "bdf"),
    ]
    (page,) = source.pages(listed[0].part)
    with pytest.raises(InputError, match=r"a crash\.pdf: its pages cannot be counted, PDFium has crashed \(SIGSEGV\)"):
        pixels(page)


def test_counts_are_those_of_this_process(tmp_path):
    paths = []
    for count in (0, 1, 7, 300):
        with pypdfium2.PdfDocument.new() as pdf:
            for _ in range(count):
                pdf.new_page(100, 100)
            paths.append(tmp_path / f"글 \n{count}.pdf")
            pdf.save(paths[-1])
    paths.append(tmp_path / b"a\xff.pdf".decode("utf-8", "surrogateescape"))
    paths[2].rename(paths[-1])
    for path in (*paths, tmp_path / "none.pdf"):
        with PageCounter() as counter:
            counter.start()
            try:
                expected = page_count(path)
            except InputError as error:
                with pytest.raises(InputError) as caught:
                    counter.count(path)
                # In brackets PDFium gives the last error of the process, which may be of another file.
                assert str(caught.value).partition(" (PDFium")[0] == str(error).partition(" (PDFium")[0]
            else:
                assert counter.count(path) == expected


def test_a_process_that_cannot_start_is_not_the_fault_of_a_pdf(hostile):
    """Every PDF would be an error, and the run would end well."""
    (hostile.parent / "packages" / "subprocess.py").write_text("raise SystemExit(7)")
    with pytest.raises(
        InputError, match=r"the process that counts pages of PDFs has ended at its start \(exit code 7\)"
    ):
        list(Folder(Storage.at(hostile), None, False).parts())


LISTING = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
sys.path.insert(0, sys.argv[1])
from runtime.batch.source.page_counter import PageCounter
try:
    with PageCounter(4) as counter:
        counter.start()
        print(counter._process.pid, flush=True)
        counter.count(Path(sys.argv[2]))
except KeyboardInterrupt:
    print("interrupted")
"""


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_the_process_that_asks_and_says_nothing(stop, hostile):
    """Ctrl-C comes to all processes of a terminal."""
    listing = subprocess.Popen(
        [sys.executable, "-c", LISTING, str(hostile.parent / "packages"), str(hostile / "c hang.pdf")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    counting = int(listing.stdout.readline())
    time.sleep(0.3)
    assert not ended(counting)
    os.killpg(listing.pid, stop)
    out, err = listing.communicate()
    assert (out, err) == ("interrupted\n" if stop == signal.SIGINT else "", "")
    for _ in range(300):
        if ended(counting):
            return
        time.sleep(0.1)
    raise AssertionError("it goes on")


def test_a_pdf_that_vanishes_after_it_was_listed_is_pages_with_its_error(tmp_path):
    with pypdfium2.PdfDocument.new() as pdf:
        for _ in range(200):
            pdf.new_page(100, 100)
        pdf.save(tmp_path / "book.pdf")
    single, whole = (Folder(Storage.at(tmp_path), None, per_document) for per_document in (False, True))
    pages, (document,) = listed_pages(single), listed_pages(whole)
    assert (len(pages), len(pixels(document))) == (200, 200)
    (tmp_path / "book.pdf").unlink()
    for page in (pages[0], pages[-1], document):
        with pytest.raises(InputError, match=r"book\.pdf: no such file"):
            pixels(page)


def test_a_process_that_died_between_two_files_is_started_anew(tmp_path):
    """As by the system's OOM killer: the next file is not at fault."""
    path = tmp_path / "a.pdf"
    with pypdfium2.PdfDocument.new() as pdf:
        pdf.new_page(100, 100)
        pdf.save(path)
    before = {*psutil.Process().children()}
    with PageCounter() as counter:
        counter.start()
        assert counter.count(path) == 1
        (child,) = {*psutil.Process().children()} - before
        child.kill()
        child.wait(30)
        counter.start()
        assert counter.count(path) == 1
    assert {*psutil.Process().children()} <= before
