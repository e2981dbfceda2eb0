"""A folder of pages, some with answers, and drawn pages of PDFs."""

import pytest

from calib_data.sources.pdf import draw_page

from .pages import picture


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for index in range(30):
        picture(index).save(root / f"{index:02}.png")
        if index % 2:
            (root / f"{index:02}.txt").write_text(f"text {index} 합계\n", encoding="utf-8")
    (root / "notes.md").write_text("not an image, not in the way")
    return root


@pytest.fixture
def draw(tmp_path):
    """The first page of a PDF, given as the bytes of its file."""

    def draw(content):
        path = tmp_path / "form.pdf"
        path.write_bytes(content)
        return draw_page(path, 0)

    return draw
