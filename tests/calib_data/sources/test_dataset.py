"""Hugging Face datasets as sources: saved ones, in one split or several, and rows that cannot be read."""

import sys
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from calib_data.sources import open_documents
from console.errors import InputError

from .pages import dataset, open_all, picture, picture_bytes


def test_a_saved_dataset_is_read(tmp_path):
    pages, numbers = [picture(index) for index in range(30)], range(30)
    accepted = [[f"a{i}", "x", "y"][: i % 4] for i in numbers]
    dataset(pages, [f"q{i}" for i in numbers], accepted).save_to_disk(tmp_path / "saved")
    documents = {d.prompt: d for part in open_all(tmp_path / "saved").values() for d in part}
    assert sorted(documents) == sorted(f"q{i}" for i in numbers)
    for number in numbers:
        document, (first, *others) = documents[f"q{number}"], accepted[number] or [None]
        assert (document.answer, document.also) == (first, tuple(others))
        assert document.name == f"row/{number}"
        np.testing.assert_array_equal(np.asarray(document.image), np.asarray(pages[number]))


def test_a_dataset_has_the_same_documents_wherever_it_lies(tmp_path):
    rows = dataset([picture(i) for i in range(12)], [f"q{i}" for i in range(12)], [["a"]] * 12)
    rows.save_to_disk(tmp_path / "set")
    before = open_all(tmp_path / "set")
    digests = {split: [document.digest() for document in part] for split, part in before.items()}
    (tmp_path / "set").rename(tmp_path / "moved")
    after = open_all(tmp_path / "moved")
    assert {split: [document.digest() for document in part] for split, part in after.items()} == digests
    assert all(before.values())


def test_questions_about_one_page_of_a_dataset_stay_together(tmp_path):
    numbers = [number for number in range(20) for _ in range(3)]
    questions = [f"{number}: q{i % 3}" for i, number in enumerate(numbers)]
    dataset([picture(number) for number in numbers], questions, [["a"]] * 60).save_to_disk(tmp_path)
    parts = open_all(tmp_path)
    assert sorted(document.prompt for part in parts.values() for document in part) == sorted(questions)
    homes = [{document.prompt.partition(":")[0] for document in part} for part in parts.values()]
    assert all(homes)
    assert all(one.isdisjoint(other) for one, other in combinations(homes, 2))


@pytest.mark.parametrize("stored", ["arrow", "parquet"])
def test_one_of_several_splits_of_a_dataset_is_named(tmp_path, stored):
    datasets = pytest.importorskip("datasets")
    pages = [picture(index) for index in range(12)]
    own = {
        name: dataset(pages, [f"{name} {i}" for i in range(12)], [["a"]] * 12) for name in ("train", "validation")
    }  # fmt: skip
    folder = tmp_path / "set"
    if stored == "arrow":
        datasets.DatasetDict(own).save_to_disk(folder)
    else:
        (folder / "data").mkdir(parents=True)
        for name, rows in own.items():
            rows.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    read = [document for part in open_all(f"{folder}:validation").values() for document in part]
    assert sorted(document.prompt for document in read) == sorted(f"validation {i}" for i in range(12))
    names = f"give one of {folder}:train, {folder}:validation"
    with pytest.raises(InputError, match=f"^{folder}: has several splits, {names}$"):
        open_documents(str(folder), split="calibration", count=1)
    with pytest.raises(InputError, match=f"^{folder}: has no split 'test', {names}$"):
        open_documents(f"{folder}:test", split="calibration", count=1)


def test_a_dataset_of_one_split_needs_no_name(tmp_path):
    dataset([picture(i) for i in range(12)], ["q"] * 12, [["a"]] * 12).to_parquet(tmp_path / "test.parquet")
    assert sum(map(len, open_all(tmp_path).values())) == sum(map(len, open_all(f"{tmp_path}:test").values())) == 12


def test_a_dataset_row_that_cannot_be_read_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = dataset([picture(i) for i in range(12)], ["q"] * 12, [["a"]] * 12)
    broken = [{"bytes": picture_bytes(i)[:300], "path": None} for i in range(12)]
    damaged = rows.remove_columns("image").add_column("image", broken, feature=datasets.Image())
    empty = rows.remove_columns("image").add_column("image", [None] * 12, feature=datasets.Image())
    silent, blank = (rows.remove_columns("question").add_column("question", [text] * 12) for text in (None, " "))
    for name, wrong, words in (
        ("damaged", damaged, "cannot be read as an image"),
        ("empty", empty, "has no picture"),
        ("silent", silent, "is not valid: no text in its column 'question'"),
        ("blank", blank, "is not valid: 'question' is empty"),
        (
            "words",
            rows.remove_columns("image").add_column("image", ["a.png"] * 12),
            "has no column 'image' of pictures",
        ),
    ):
        wrong.save_to_disk(tmp_path / name)
        with pytest.raises(InputError, match=words) as error:
            open_documents(str(tmp_path / name), split="calibration", count=1)
        assert str(error.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(error.value)


def test_a_dataset_row_that_is_not_utf_8_is_named(tmp_path):
    """Arrow takes strings as their writer left them."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = dataset([picture(i) for i in range(12)], ["What?"] * 12, [["a"]] * 12)
    rows.to_parquet(tmp_path / "test.parquet")
    table = parquet.read_table(tmp_path / "test.parquet")
    questions = pyarrow.array([b"Wh \xed\xa0\xbd"] * 12).view(pyarrow.string())
    parquet.write_table(table.set_column(1, table.schema.field(1), questions), tmp_path / "test.parquet")
    with pytest.raises(InputError, match=rf"^{tmp_path}: row \d+ is not valid: 'utf-8' codec can't decode [^\n]*$"):
        open_documents(str(tmp_path), split="calibration", count=1)


def test_a_dataset_needs_the_extra(monkeypatch):
    monkeypatch.setattr(sys, "modules", {**sys.modules, "datasets": None})
    with pytest.raises(InputError, match="extra 'data'"):
        open_documents("someone/receipts", split="calibration", count=1)


def test_columns_that_are_not_read_are_named_once(tmp_path, capsys):
    rows = dataset([picture(i) for i in range(4)], ["q"] * 4, [["a"]] * 4)
    rows.add_column("docId", [1] * 4).add_column("query", ["other"] * 4).save_to_disk(tmp_path)
    assert {document.prompt for part in open_all(tmp_path).values() for document in part} == {"q"}
    said = [line for line in capsys.readouterr().err.splitlines() if "not read" in line]
    assert said == [f"{tmp_path}: columns that are not read: 'docId', 'query'"]


def test_few_documents_of_a_dataset_open_few_pictures(tmp_path, monkeypatch):
    pages = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(200)]
    dataset(pages, ["q"] * 200, [["a"]] * 200).save_to_disk(tmp_path)
    opened, plain = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(1) or plain(*a, **k))
    assert len(open_documents(str(tmp_path), split="evaluation", count=5)) == 5
    assert len(opened) < 40
