"""A folder of pages, some with answers."""

import pytest

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
