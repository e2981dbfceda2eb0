"""A reference whose documents have moved or changed."""

import json
import shutil

import numpy as np
import pytest

from calib_data.sources import open_documents
from console.errors import InputError
from runtime.compare.measuring.baseline import ReferenceBaseline
from runtime.compare.measuring.models import Models

PAGES = "scans/2026/pages"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A reference of a folder of pictures, written from where the folder is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / PAGES).mkdir(parents=True)
    for number, document in enumerate(open_documents(split="evaluation", count=10, seed=1)):
        document.image.save(tmp_path / PAGES / f"{number}.png")
        (tmp_path / PAGES / f"{number}.txt").write_text(document.answer)
    keep(tmp_path / "reference.npz", PAGES)
    return tmp_path


def keep(path, source):
    documents = open_documents(source, split="evaluation", count=10)
    count = len(documents)
    np.savez(
        path,
        document=np.arange(count),
        digest=np.array([document.digest() for document in documents]),
        length=np.full(count, 3),
        answer=np.full(count, 2),
        ids=np.arange(3 * count),
        top_ids=np.tile([4, 2], (2 * count, 1)),
        top_logits=np.tile(np.float32([1, 0]), (2 * count, 1)),
        logsumexp=np.full(2 * count, 2.0),
        source=json.dumps({"source": source, "count": 10, "seed": 0}),
    )


def test_documents_are_found_where_they_are_now(kept):
    names = [document.name for document in ReferenceBaseline(kept / "reference.npz").documents]
    moved = kept / "elsewhere"
    shutil.move(kept / PAGES, moved)
    with pytest.raises(InputError, match=f"{PAGES}: no such file or folder"):
        ReferenceBaseline(kept / "reference.npz")
    baseline = Models(kept / "reference.npz", (), "cpu", str(moved)).load().baseline
    assert [document.name for document in baseline.documents] == names
    assert baseline.token_ids(baseline.documents[1]) == [3, 4, 5]
    (first, second) = baseline.predict(baseline.documents[1], [4, 5]).predictions
    assert [first.log_likelihood(np.array([token]))[0] for token in (4, 2)] == [-1, -2]
    assert np.isnan(second.log_likelihood(np.array([5])))


def test_removed_pages_are_said(kept):
    """Whichever page is removed: other pages are drawn then, or too few."""
    said = "(is not the document|a document) that was kept( is gone)?: pages have been added, removed or changed since"
    for document in open_documents(PAGES, split="evaluation", count=10):
        picture = kept / PAGES / document.name
        content = picture.read_bytes()
        picture.unlink()
        with pytest.raises(InputError, match=f"npz: .*{said}"):
            ReferenceBaseline(kept / "reference.npz")
        picture.write_bytes(content)


def test_another_source_is_not_called_a_changed_page_alone(kept):
    shutil.copytree(kept / PAGES, "others")
    for picture in (kept / "others").glob("*.png"):
        open_documents(PAGES, split="evaluation", count=1)[0].image.rotate(9).save(picture)
    with pytest.raises(InputError, match=f"not the document that was kept: --documents others is not {PAGES}, which"):
        ReferenceBaseline(kept / "reference.npz", "others")


def test_a_source_that_cannot_be_opened_is_named_itself(command, exported, kept):
    """The message does not blame the reference, which is intact."""
    arguments = "--baseline", "reference.npz", "--model", exported("fp16"), "--documents", "long" * 100
    code, out, err = command("compare", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "longlong" in err
    assert "not a reference" not in err


def test_pictures_that_are_drawn_otherwise_are_no_longer_those(kept):
    first = open_documents(PAGES, split="evaluation", count=10)[0]
    first.image.transpose(0).save(kept / PAGES / first.name)
    with pytest.raises(InputError, match=rf"{first.name} is not the document .* another version of Pillow"):
        ReferenceBaseline(kept / "reference.npz")


def test_rows_of_a_dataset_are_found_where_they_are_now(tmp_path):
    datasets = pytest.importorskip("datasets")
    pages = [document.image for document in open_documents(split="evaluation", count=10, seed=1)]
    rows = {"image": pages, "question": ["Who?"] * 10, "answer": [f"{number}" for number in range(10)]}
    features = {name: datasets.Value("string") for name in rows} | {"image": datasets.Image()}
    rows = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    rows.save_to_disk(tmp_path / "set")
    keep(tmp_path / "reference.npz", str(tmp_path / "set"))
    (tmp_path / "set").rename(tmp_path / "moved")
    found = ReferenceBaseline(tmp_path / "reference.npz", str(tmp_path / "moved")).documents
    names = [document.name for document in open_documents(str(tmp_path / "moved"), split="evaluation", count=10)]
    assert [document.name for document in found] == names
    assert {name.partition("/")[0] for name in names} == {"row"}


DAMAGED = {
    "document": lambda a: a + 0.5,
    "length": lambda a: a[:-1],
    "answer": lambda a: a[:-1],
    "answer of nothing": lambda a: a * 0,
    "ids": lambda a: a[:-1],
    "top_ids": lambda a: a[:-1],
    "top_ids as text": lambda a: a.astype(str),
    "top_ids below 0": lambda a: -a,
    "top_logits": lambda a: a * np.float32(np.nan),
    "top_logits too large": lambda a: a + 1000,
    "logsumexp": lambda a: a * np.inf,
    "logsumexp of 0": lambda a: a * 0,
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_reference_whose_arrays_do_not_fit_is_refused(case, kept):
    path, name = kept / "reference.npz", case.split()[0]
    with np.load(path) as stored:
        content = dict(stored)
    np.savez(path, **content | {name: DAMAGED[case](content[name])})
    with pytest.raises(InputError, match=rf"^{path}: not a reference written by quantize \("):
        ReferenceBaseline(path)


def test_a_reference_of_a_larger_vocabulary_is_refused(exported, kept):
    path = kept / "reference.npz"
    with np.load(path) as stored:
        content = dict(stored)
    np.savez(path, **content | {"top_ids": content["top_ids"] + 600})
    with pytest.raises(InputError, match=r"its vocabulary lacks token 604 of .*reference\.npz"):
        Models(path, (exported("fp16"),), "cpu").load()
