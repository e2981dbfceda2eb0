"""What a picture costs at a URL, and how its errors name it."""

import io

import numpy as np
import pytest
from PIL import Image

from console.errors import InputError
from runtime.batch.source.folder import Folder
from runtime.batch.source.lines import Lines
from runtime.batch.source.table import Table
from runtime.batch.storage import Storage

from ..counting import counted
from ..listing import listed_pages, pixels


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise()).save(file, "PNG")
    return file.getvalue()


def test_an_image_at_a_url_is_one_request():
    storage = Storage("counting://scans")
    storage.write("a [1].png", png())
    (page,) = listed_pages(Folder(storage, None, False))
    assert counted(lambda: pixels(page)) == ({"read": 1}, len(png()))
    assert np.array_equal(*pixels(page), noise())


@pytest.mark.parametrize("source", ["lines", "table"])
def test_so_is_one_that_a_file_names(source):
    storage = Storage("counting://named")
    storage.write("a.png", png())
    if source == "lines":
        storage.write("a.jsonl", b'{"image": "a.png"}')
        (page,) = listed_pages(Lines(Storage("counting://named/a.jsonl"), None))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = io.BytesIO()
        pq.write_table(pa.table({"image": ["a.png"]}), file)
        storage.write("a.parquet", file.getvalue())
        (page,) = listed_pages(Table(Storage("counting://named/a.parquet"), None))
    assert counted(lambda: pixels(page))[0] == {"read": 1}
    assert np.array_equal(*pixels(page), noise())


def test_a_pdf_at_a_url_is_copied_once_and_asked_for_each_page(tmp_path):
    Image.fromarray(noise()).save(
        tmp_path / "a.pdf", "PDF", save_all=True, append_images=[Image.fromarray(noise())] * 4
    )
    storage = Storage("counting://pdfs")
    storage.write("a.pdf", (tmp_path / "a.pdf").read_bytes())
    pages = [page for page in listed_pages(Folder(storage, None, False)) if page.document == "a.pdf"]
    assert len(pages) == 5
    storage.write("a.pdf", (tmp_path / "a.pdf").read_bytes())  # newer than the copy that was listed
    requests, count = counted(lambda: [pixels(page) for page in pages])
    assert requests["open rb"] == 1
    assert requests["info"] <= 5 + 1
    assert {*requests} == {"open rb", "info"}
    assert count == (tmp_path / "a.pdf").stat().st_size


def test_a_picture_that_has_vanished_since_it_was_listed_is_named():
    storage = Storage("counting://gone")
    storage.write("a.png", png())
    (page,) = listed_pages(Folder(storage, None, False))
    storage.delete("a.png")
    with pytest.raises(InputError, match=r"^counting://gone/a\.png: cannot be read \("):
        pixels(page)
