"""Document sources on real files: folders, PDF, JSONL, datasets, and one clear line for everything that is wrong."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calib_data.content import SPLITS
from calib_data.errors import InputError
from calib_data.render import render
from calib_data.sources import open_documents, split_of_item


def picture(index=0):
    return render("training", 0, index, "field").document.image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for index in range(30):
        picture(index).save(root / f"{index:02}.png")
        if index % 2:
            (root / f"{index:02}.txt").write_text(f"text {index} 합계\n", encoding="utf-8")
    (root / "notes.md").write_text("not an image, not in the way")
    return root


def open_all(source):
    return {split: open_documents(str(source), split=split, count=1000) for split in SPLITS}


def test_a_folder_is_split_once_and_completely(folder):
    parts = open_all(folder)
    names = [document.name for part in parts.values() for document in part]
    assert sorted(names) == sorted(file.name for file in folder.glob("*.png"))
    assert all(part for part in parts.values())
    assert all(split_of_item(document.name) == split for split, part in parts.items() for document in part)


def test_a_folder_gives_pixels_and_answers(folder):
    for document in open_documents(str(folder), split="calibration", count=1000):
        truth = folder / document.name.replace(".png", ".txt")
        assert document.answer == (truth.read_text(encoding="utf-8").strip() if truth.exists() else None)
        np.testing.assert_array_equal(np.asarray(document.image), np.asarray(Image.open(folder / document.name)))


def test_items_stay_in_their_split_when_others_are_added(folder, tmp_path):
    for file in sorted(folder.glob("*.png"))[:20]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    small, large = open_all(tmp_path), open_all(folder)
    for split in SPLITS:
        assert {page.name for page in small[split]} <= {page.name for page in large[split]}


def test_seed_and_count_choose_among_the_split(folder):
    def names(seed, count):
        return [d.name for d in open_documents(str(folder), split="evaluation", count=count, seed=seed)]

    assert names(0, 4) == names(0, 4) == names(0, 8)[:4]
    assert names(0, 1000) != names(1, 1000)
    assert sorted(names(0, 1000)) == sorted(names(1, 1000))


def test_rendered_is_the_default_and_knows_kinds():
    documents = open_documents(split="evaluation", count=3, seed=5, kind="line")
    assert [document.name for document in documents] == [f"evaluation/5/line/{index}" for index in range(3)]
    assert all("\n" not in document.answer for document in documents)


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


def test_jsonl_keeps_a_picture_in_one_split(folder):
    path = folder / "questions.jsonl"
    images = [file.name for file in sorted(folder.glob("*.png"))]
    rows = [
        {"image": image, "prompt": prompt, "answer": answer}
        for image in images
        for prompt, answer in (("합계는?", "12"), ("Who?", None))
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    parts = open_all(path)
    assert (
        sorted((d.prompt, d.answer) for part in parts.values() for d in part)
        == sorted([("합계는?", "12"), ("Who?", None)] * 12, key=str)
        or sum(map(len, parts.values())) == 60
    )
    homes = [{document.name.rpartition(":")[0] for document in part} for part in parts.values()]
    assert not homes[0] & homes[1]
    assert not homes[1] & homes[2]


def test_jsonl_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "pages").mkdir()
    picture().save(tmp_path / "pages" / "a.png")
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"image": "pages/a.png", "prompt": "Read."}))
    (document,) = open_documents(str(path), split=split_of_item("pages/a.png"), count=5)
    assert (document.prompt, document.answer, document.image.size) == ("Read.", None, picture().size)


def test_a_saved_dataset_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    pages = [picture(index) for index in range(30)]
    table = datasets.Dataset.from_dict(
        {"image": pages, "question": [f"q{i}" for i in range(30)], "answers": [[f"a{i}", "x"] for i in range(30)]},
        features=datasets.Features(
            image=datasets.Image(), question=datasets.Value("string"), answers=datasets.List(datasets.Value("string"))
        ),
    )
    table.save_to_disk(tmp_path / "saved")
    documents = [d for part in open_all(tmp_path / "saved").values() for d in part]
    assert sorted((d.prompt, d.answer) for d in documents) == sorted((f"q{i}", f"a{i}") for i in range(30))
    number = int(documents[0].prompt[1:])
    np.testing.assert_array_equal(np.asarray(documents[0].image), np.asarray(pages[number]))


def test_a_dataset_needs_the_extra(monkeypatch):
    monkeypatch.setattr(sys, "modules", {**sys.modules, "datasets": None})
    with pytest.raises(InputError, match="extra 'data'"):
        open_documents("someone/receipts", split="calibration", count=1)


def _bad(tmp_path):
    """Name -> (source, words of the message)."""
    empty = tmp_path / "empty"
    empty.mkdir()
    few = tmp_path / "few"
    few.mkdir()
    picture().save(few / "one.png")
    lines = {
        "broken.jsonl": '{"image": "a.png", "prompt": "?"}\n{"image": ',
        "list.jsonl": "[1]",
        "noimage.jsonl": '{"prompt": "?"}',
        "noprompt.jsonl": '{"image": "a.png"}',
        "number.jsonl": '{"image": "a.png", "prompt": "?", "answer": 3}',
        "empty.jsonl": "\n",
        "fake.pdf": "not a PDF",
        "table.csv": "a,b",
    }
    for name, text in lines.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    return {
        "empty": (empty, "no images"),
        "missing": (tmp_path / "nowhere.jsonl", "no such file"),
        "nowhere": (tmp_path / "not" / "here", "no such file"),
        "broken": (tmp_path / "broken.jsonl", "line 2"),
        "list": (tmp_path / "list.jsonl", "line 1"),
        "noimage": (tmp_path / "noimage.jsonl", "'image'"),
        "noprompt": (tmp_path / "noprompt.jsonl", "'prompt'"),
        "number": (tmp_path / "number.jsonl", "'answer'"),
        "no rows": (tmp_path / "empty.jsonl", "no documents"),
        "binary": (tmp_path / "binary.jsonl", "UTF-8"),
        "pdf": (tmp_path / "fake.pdf", "PDF"),
        "csv": (tmp_path / "table.csv", "not a folder"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "empty", "missing", "nowhere", "broken", "list", "noimage", "noprompt", "number", "no rows", "binary", "pdf",
        "csv",
    ],
)  # fmt: skip
def test_a_bad_source_is_one_line_that_names_it(tmp_path, case):
    source, words = _bad(tmp_path)[case]
    with pytest.raises(InputError) as error:
        for split in SPLITS:
            open_documents(str(source), split=split, count=5)
    assert str(source) in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_too_few_items_for_a_split(tmp_path):
    picture().save(tmp_path / "one.png")
    other = next(split for split in SPLITS if split != split_of_item("one.png"))
    with pytest.raises(InputError, match=f"none of its 1 documents falls into the {other} split"):
        open_documents(str(tmp_path), split=other, count=1)


def _damage(path: Path, how: str):
    if how == "text":
        path.write_text("hello")
    elif how == "empty":
        path.touch()
    elif how == "truncated":
        picture().save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:900])
    elif how == "folder":
        path.mkdir()
    elif how == "bomb":
        Image.new("1", (15000, 15000)).save(path, "PNG")


@pytest.mark.parametrize("how", ["text", "empty", "truncated", "folder", "bomb"])
def test_a_bad_picture_is_one_line_that_names_it(tmp_path, how):
    _damage(tmp_path / "scan.jpg", how)
    with pytest.raises(InputError) as error:
        open_documents(str(tmp_path), split=split_of_item("scan.jpg"), count=1)
    assert str(tmp_path / "scan.jpg") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "test", "count": 1}, "unknown split 'test'"),
        ({"split": "training", "count": 0}, "0 documents"),
        ({"split": "training", "count": 1, "kind": "poem"}, "unknown kind 'poem'"),
        ({"source": "some/set", "split": "training", "count": 1, "kind": "line"}, "rendered"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        open_documents(**arguments)
