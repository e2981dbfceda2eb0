"""Pages for the tests of sources, and all documents of a source."""

import io
from contextlib import suppress

import pytest

from calib_data.rendered.render import render
from calib_data.sources import open_documents
from console.errors import EmptySplitError

OWN_SPLITS = ("calibration", "evaluation")


def picture(index=0):
    return render("training", 0, index, "field").document.image


def picture_bytes(index):
    file = io.BytesIO()
    picture(index).save(file, "PNG")
    return file.getvalue()


def open_all(source):
    """All documents of a source by split."""
    parts = {split: [] for split in OWN_SPLITS}
    for split, part in parts.items():
        with suppress(EmptySplitError):
            part += open_documents(str(source), split=split, count=1000)
    return parts


def dataset(pages, questions, answers):
    datasets = pytest.importorskip("datasets")
    text = datasets.Value("string")
    return datasets.Dataset.from_dict(
        {"image": pages, "question": questions, "answers": answers},
        features=datasets.Features(image=datasets.Image(), question=text, answers=datasets.List(text)),
    )
