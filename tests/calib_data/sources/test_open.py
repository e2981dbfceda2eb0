"""Any source: splits and seeds, memory, and one clear line for everything that is wrong."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calib_data.sources import open_documents
from calib_data.splits import split_of_picture
from console.errors import InputError

from .pages import OWN_SPLITS, dataset, open_all, picture


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


def test_a_kind_of_rendered_documents_is_a_source_too():
    """So that commands without --kind reach it; the mix has no reasoning."""
    named, chosen = (
        [one.digest() for one in open_documents(source, split="calibration", count=3, kind=kind)]
        for source, kind in (("rendered:reasoning", None), ("rendered", "reasoning"))
    )
    assert named == chosen
    assert all(one.reasoning for one in open_documents("rendered:reasoning", split="calibration", count=3))
    assert not any(one.reasoning for one in open_documents(split="calibration", count=30))
    with pytest.raises(InputError, match="unknown kind 'poem': choose one of line, field, transcription, reasoning"):
        open_documents("rendered:poem", split="calibration", count=1)
    with pytest.raises(InputError, match="kind 'line' chooses among rendered documents; rendered:field has only"):
        open_documents("rendered:field", split="calibration", count=1, kind="line")


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
        "empty": (empty, "holds no documents"),
        "missing": (tmp_path / "nowhere.jsonl", "no such file"),
        "nowhere": (tmp_path / "not" / "here", "no such file"),
        "broken": (tmp_path / "broken.jsonl", "line 2"),
        "list": (tmp_path / "list.jsonl", "line 1"),
        "noimage": (tmp_path / "noimage.jsonl", "'image'"),
        "imageless": (tmp_path / "imageless.jsonl", "line 1 is not valid: 'image' is not text"),
        "noprompt": (tmp_path / "noprompt.jsonl", "line 1 is not valid: it has neither an 'image' nor a 'prompt'"),
        "promptless": (tmp_path / "promptless.jsonl", "line 1 is not valid: 'prompt' is not text"),
        "number": (tmp_path / "number.jsonl", "'answer'"),
        "half": (
            tmp_path / "half.jsonl",
            "line 2 is not valid: ",
        ),
        "part": (
            tmp_path / "part.jsonl",
            "position 2: surrogates not allowed",
        ),
        "digits": (tmp_path / "digits.jsonl", "line 1 is not valid: "),
        "deep": (tmp_path / "deep.jsonl", "line 1 is not valid: "),
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
    other = next(split for split in OWN_SPLITS if split != split_of_picture(picture()))
    with pytest.raises(InputError, match=f"none of its 1 documents is for {other}: 60 % are for calibration"):
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
        open_documents(str(tmp_path), split="calibration", count=1)
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
            Image.new("RGB", (size, size), (255, 255, 10 * number)).save(tmp_path / str(size) / f"{number}.jpg")
    arguments = [sys.executable, "-c", PEAK, tmp_path / "8", tmp_path / "2000"]
    count, grown = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()
    assert int(count) > 6
    assert 1 < int(grown) / (4 * 2000 * 2000) < 3


def test_documents_go_to_other_processes_without_their_pictures(folder, tmp_path):
    picture(0).resize((448, 224)).save(tmp_path / "a.pdf")
    dataset([picture(i) for i in range(12)], ["q"] * 12, [["a"]] * 12).save_to_disk(tmp_path / "set")
    sent = [document for source in (folder, tmp_path / "set") for document in open_all(source)["evaluation"][:1]]
    sent += [document for part in open_all(tmp_path / "a.pdf").values() for document in part]
    assert len(sent) == 3
    for document in sent:
        stored = pickle.dumps(document)
        assert len(stored) < 10_000
        np.testing.assert_array_equal(np.asarray(pickle.loads(stored).image), np.asarray(document.image))
