"""The pages of a PDF as a source."""

import numpy as np

from .pages import open_all, picture


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
