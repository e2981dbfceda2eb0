"""Document sources on real files: folders, PDF, JSONL, and one clear line for everything that is wrong."""

import json
import os
import pickle
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calib_data.sources import open_documents, split_of_item
from console.errors import InputError

from .pages import OWN_SPLITS, dataset, open_all, picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for index in range(30):
        picture(index).save(root / f"{index:02}.png")
        if index % 2:
            (root / f"{index:02}.txt").write_text(f"text {index} 합계\n", encoding="utf-8")
    (root / "notes.md").write_text("not an image, not in the way")
    return root


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


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 exist there only")
def test_names_of_files_need_not_be_utf_8(tmp_path):
    for index in range(6):
        picture().save(os.fsdecode(os.fsencode(tmp_path) + b"/\xc7\xd1%d.png" % index))
    parts = open_all(tmp_path)
    assert sum(map(len, parts.values())) == 6
    assert all(len(document.digest()) == 64 for part in parts.values() for document in part)


@pytest.mark.parametrize("suffix", [".pdf", ".jsonl", ""])
def test_a_source_whose_name_is_not_utf_8_is_read_or_refused_in_a_line(tmp_path, suffix):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xc7\xd1" + suffix.encode()))
    if suffix == ".pdf":
        picture().resize((448, 224)).save(tmp_path / "a.pdf")
        (tmp_path / "a.pdf").rename(path)
    elif suffix:
        picture().save(tmp_path / "a.png")
        path.write_text(json.dumps({"image": "a.png", "prompt": "?"}))
    else:
        dataset([picture(i) for i in range(12)], ["q"] * 12, [["a"]] * 12).save_to_disk(tmp_path / "set")
        (tmp_path / "set").rename(path)
    try:
        assert open_documents(str(path), split="calibration", count=1)
    except InputError as error:
        assert "\n" not in str(error)


def test_items_stay_in_their_split_when_others_are_added(folder, tmp_path):
    for file in sorted(folder.glob("*.png"))[:20]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    small, large = open_all(tmp_path), open_all(folder)
    for split in OWN_SPLITS:
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


def test_texts_of_windows_begin_with_a_mark_that_is_no_text(tmp_path):
    names = [f"{i}.png" for i in range(9)]
    for name in names:
        picture().save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("합계 12", encoding="utf-8-sig")
    row = json.dumps({"image": names[0], "prompt": "Read.", "answer": "a"})
    (tmp_path / "rows.jsonl").write_text(row, encoding="utf-8-sig")
    assert {document.answer for part in open_all(tmp_path).values() for document in part} == {"합계 12"}
    (document,) = open_documents(str(tmp_path / "rows.jsonl"), split=split_of_item(names[0]), count=1)
    assert document.answer == "a"


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


def test_a_folder_of_images_stays_one_when_it_has_data_below_it(folder, tmp_path):
    for file in sorted(folder.glob("*.png"))[:12]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "table.parquet").write_bytes(b"of something else")
    (tmp_path / "export" / "dataset_info.json").write_text("{}")
    assert sum(map(len, open_all(tmp_path).values())) == 12


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
        "imageless.jsonl": '{"image": 3, "prompt": "?"}',
        "noprompt.jsonl": '{"answer": "12"}',
        "promptless.jsonl": '{"image": "a.png", "prompt": 3}',
        "number.jsonl": '{"image": "a.png", "prompt": "?", "answer": 3}',
        "half.jsonl": '{"image": "a.png", "prompt": "?", "answer": "no"}\n{"image": "a.png", "prompt": "Wh \\ud83d?"}',
        "part.jsonl": '{"image": "a.png", "prompt": "?", "answer": "a \\ude00"}',
        "digits.jsonl": '{"image": "a.png", "prompt": "?", "total": ' + "1" * 5000 + "}",
        "deep.jsonl": "[" * 100_000,
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
        "imageless": (tmp_path / "imageless.jsonl", "line 1 has an 'image' that is not text"),
        "noprompt": (tmp_path / "noprompt.jsonl", "line 1 has no text under 'prompt'"),
        "promptless": (tmp_path / "promptless.jsonl", "line 1 has no text under 'prompt'"),
        "number": (tmp_path / "number.jsonl", "'answer'"),
        "half": (tmp_path / "half.jsonl", "line 2 has half a character under 'prompt' (surrogates not allowed)"),
        "part": (tmp_path / "part.jsonl", "line 1 has half a character under 'answer'"),
        "digits": (tmp_path / "digits.jsonl", "line 1 is not JSON"),
        "deep": (tmp_path / "deep.jsonl", "line 1 is not JSON"),
        "no rows": (tmp_path / "empty.jsonl", "no documents"),
        "binary": (tmp_path / "binary.jsonl", "UTF-8"),
        "pdf": (tmp_path / "fake.pdf", "PDF"),
        "csv": (tmp_path / "table.csv", "not a folder"),
    }


@pytest.mark.parametrize("name", ["nope", "nope:train"])
def test_a_name_without_owner_is_a_missing_folder_and_asks_no_network(name):
    with pytest.raises(InputError, match=rf"^{name}: no such file or folder, .* as owner/name$"):
        open_documents(name, split="evaluation", count=1)


@pytest.mark.parametrize(
    "case",
    [
        "empty", "missing", "nowhere", "broken", "list", "noimage", "imageless", "noprompt", "promptless", "number",
        "half", "part", "digits", "deep", "no rows", "binary", "pdf", "csv",
    ],
)  # fmt: skip
def test_a_bad_source_is_one_line_that_names_it(tmp_path, case):
    source, words = _bad(tmp_path)[case]
    with pytest.raises(InputError) as error:
        for split in OWN_SPLITS:
            open_documents(str(source), split=split, count=5)
    assert str(source) in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_too_few_items_for_a_split(tmp_path):
    picture().save(tmp_path / "one.png")
    other = next(split for split in OWN_SPLITS if split != split_of_item("one.png"))
    with pytest.raises(InputError, match=f"none of its 1 documents is for {other}: three of five are for calibration"):
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


PEAK = """
import re, sys
from pathlib import Path
from calib_data.sources import open_documents

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

small, large = sys.argv[1:]
[document.image.size for document in open_documents(small, split="evaluation", count=100)]
before = peak()
documents = open_documents(large, split="evaluation", count=100)
assert {document.image.size for document in documents} == {(2000, 2000)}
print(len(documents), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak memory as Linux tells it")
def test_one_picture_is_open_at_a_time(tmp_path):
    """Photos of 4 million pixels, each 16 MB in memory: Pillow keeps four bytes a pixel."""
    for size in (8, 2000):
        (tmp_path / str(size)).mkdir()
        for number in range(20):
            Image.new("RGB", (size, size), "white").save(tmp_path / str(size) / f"{number}.jpg")
    arguments = [sys.executable, "-c", PEAK, tmp_path / "8", tmp_path / "2000"]
    count, grown = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()
    assert int(count) > 6
    assert 1 < int(grown) / (4 * 2000 * 2000) < 3


def test_documents_go_to_other_processes_without_their_pictures(folder, tmp_path):
    picture(0).resize((448, 224)).save(tmp_path / "a.pdf")
    dataset([picture(i) for i in range(12)], ["q"] * 12, [["a"]] * 12).save_to_disk(tmp_path / "set")
    sent = [document for source in (folder, tmp_path / "set") for document in open_all(source)["evaluation"][:1]]
    sent += [document for part in OWN_SPLITS for document in part_of_pdf(tmp_path / "a.pdf", part)]
    assert len(sent) == 3
    for document in sent:
        stored = pickle.dumps(document)
        assert len(stored) < 10_000
        np.testing.assert_array_equal(np.asarray(pickle.loads(stored).image), np.asarray(document.image))


def part_of_pdf(path, split):
    return open_documents(str(path), split=split, count=1) if split_of_item(f"{path.name}/1") == split else []


def test_a_picture_that_is_gone_when_it_is_asked_for_is_named(tmp_path):
    picture().save(tmp_path / "scan.png")
    (document,) = open_documents(str(tmp_path), split=split_of_item("scan.png"), count=1)
    (tmp_path / "scan.png").unlink()
    with pytest.raises(InputError, match=r"scan\.png: no such file"):
        document.image  # noqa: B018
