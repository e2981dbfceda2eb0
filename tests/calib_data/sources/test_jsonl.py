"""The lines of a JSONL file as a source."""

import json
from itertools import combinations
from pathlib import Path

import pytest

from calib_data.sources import open_documents
from calib_data.splits import split_of_item
from console.errors import InputError

from .pages import OWN_SPLITS, open_all, picture


def test_jsonl_keeps_a_picture_in_one_split(folder):
    path = folder / "questions.jsonl"
    images = [file.name for file in sorted(folder.glob("*.png"))]
    asked = [("합계는?", "12"), ("Who?", None)]
    rows = [
        {"image": image, "prompt": prompt, "answer": answer} for image in images for prompt, answer in asked
    ]  # fmt: skip
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    parts = open_all(path)
    found = [(d.name.rpartition(":")[0], d.prompt, d.answer) for part in parts.values() for d in part]
    assert sorted(found, key=str) == sorted(((image, *pair) for image in images for pair in asked), key=str)
    homes = [{document.name.rpartition(":")[0] for document in part} for part in parts.values()]
    assert all(homes)
    assert all(one.isdisjoint(other) for one, other in combinations(homes, 2))


def test_jsonl_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "pages").mkdir()
    picture().save(tmp_path / "pages" / "a.png")
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"image": "pages/a.png", "prompt": "Read."}))
    (document,) = open_documents(str(path), split=split_of_item("pages/a.png"), count=5)
    assert (document.prompt, document.answer, document.image.size) == ("Read.", None, picture().size)


@pytest.mark.parametrize("row", [{"image": "a.png"}, {"image": "a.png", "prompt": None}])
def test_a_picture_without_a_prompt_is_to_be_read(row, tmp_path):
    """In a .jsonl as in a folder."""
    picture().save(tmp_path / "a.png")
    (tmp_path / "one.jsonl").write_text(json.dumps(row))
    split = split_of_item("a.png")
    (document,) = open_documents(str(tmp_path / "one.jsonl"), split=split, count=5)
    (in_folder,) = open_documents(str(tmp_path), split=split, count=5)
    assert document.prompt == in_folder.prompt == "Read the text."


def test_jsonl_of_prompts_and_answers_alone_is_for_models_that_see_nothing(tmp_path):
    """A prompt, and whatever is answered to it, stays in one split."""
    path, prompts = tmp_path / "asked.jsonl", [f"합계 {i}?" for i in range(20)]
    rows = [{"prompt": prompt, "answer": answer} for prompt in prompts for answer in ("12", None)]
    path.write_text("\n".join(json.dumps(row | {"image": None} if row["answer"] else row) for row in rows))
    parts = {split: open_documents(str(path), split=split, count=99, pictures=False) for split in OWN_SPLITS}
    assert all(parts.values())
    assert all(split_of_item(d.prompt) == split for split, part in parts.items() for d in part)
    found = {d.name: (d.prompt, d.answer, d.picture) for part in parts.values() for d in part}
    assert found == {f"line/{i}": (row["prompt"], row["answer"], None) for i, row in enumerate(rows, start=1)}
    assert len({document.digest() for part in parts.values() for document in part}) == len(rows)
    for split in OWN_SPLITS:
        says = rf"^{path}: line/\d+ has no 'image', and a model that sees is to read it; add one$"
        with pytest.raises(InputError, match=says):
            open_documents(str(path), split=split, count=99)
    with pytest.raises(InputError, match=rf"^{parts['calibration'][0].name} has no picture$"):
        parts["calibration"][0].image  # noqa: B018


def test_jsonl_lines_end_where_json_says(folder):
    """Not at the separators of Unicode, which JSON allows inside strings."""
    path, (image, *_) = folder / "separators.jsonl", sorted(file.name for file in folder.glob("*.png"))
    row = {"image": image, "prompt": "a\u2028b\u0085c\u2029", "answer": "d\u2028"}
    path.write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode() * 2)
    found = open_documents(str(path), split=split_of_item(image), count=5)
    assert [(d.prompt, d.answer) for d in found] == 2 * [(row["prompt"], row["answer"])]


@pytest.mark.parametrize("other", ["./{}", "pages/../{}", ".//{}"])
def test_jsonl_keeps_a_picture_in_one_split_however_its_path_is_written(folder, other):
    path, images = folder / "paths.jsonl", sorted(file.name for file in folder.glob("*.png"))
    paths = [name for image in images for name in (image, other.format(image))]
    (folder / "pages").mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps({"image": name, "prompt": "?"}) for name in paths))
    parts = open_all(path)
    homes = [{Path(document.name.rpartition(":")[0]).name for document in part} for part in parts.values()]
    assert sum(map(len, homes)) == len(images)
    assert all(split_of_item(name) == split for split, names in zip(OWN_SPLITS, homes, strict=True) for name in names)
