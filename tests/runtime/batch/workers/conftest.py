"""Pages for workers."""

import pytest

from calib_data.sources import open_documents

from ..asked import write_pdf


@pytest.fixture(scope="module")
def pictures():
    return [document.image for document in open_documents(split="evaluation", count=4, seed=5, kind="line")]


@pytest.fixture
def scans(pictures, tmp_path):
    """A damaged picture, two images and a PDF of three pages."""
    folder = tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(b"no picture")
    pictures[0].save(folder / "b.png")
    pictures[1].save(folder / "more" / "c.png")
    write_pdf(folder / "more" / "d.pdf", pictures[1:])
    return folder


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of two pages."""
    for module in ("plan", "source.page", "source.folder", "source.lines", "source.table"):
        monkeypatch.setattr(f"runtime.batch.{module}.PART_PAGES", 2)
