"""Lines of a JSONL file, against `open_questions`, which reads the whole file as text."""

import codecs
import json
import tempfile
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from calib_data.sources import open_questions
from console.errors import InputError
from runtime.batch.source.lines import Lines
from runtime.batch.source.page import PART_PAGES
from runtime.batch.storage import Storage

from ..listing import listed_pages, pixels, same

BLOCK = 1 << 20  # bytes that are read at once


def lines(path, prompt=None) -> Lines:
    return Lines(Storage.at(path), prompt)


def write(folder, *rows) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def same_as_questions(path):
    """Assert that pages have the prompts and places of `open_questions`; gives the pages."""
    pages, questions = listed_pages(lines(path)), open_questions(path)
    assert [page.prompt for page in pages] == [document.prompt for _, document in questions]
    assert [page.document for page in pages] == [
        place.removeprefix(f"{path}: ") if document.name.startswith("line/") else document.name.rpartition(":")[0]
        for place, document in questions
    ]
    assert {page.page for page in pages} == {None}
    return pages


BLANK = st.sampled_from([b"", b" ", b"\t", b"  \t "])
ENDS = st.sampled_from([b"\n", b"\r\n"])
ROWS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    prompts=st.lists(ROWS.map(lambda text: "a" + text), min_size=1, max_size=12),
    blanks=st.lists(BLANK, max_size=12),
    data=st.data(),
    mark=st.booleans(),
    ended=st.booleans(),
)
def test_any_file_has_the_lines_of_open_questions(prompts, blanks, data, mark, ended):
    rows = [json.dumps({"prompt": text}, ensure_ascii=data.draw(st.booleans())).encode() for text in prompts]
    mixed = data.draw(st.permutations([*rows, *blanks]))
    ends = [data.draw(ENDS) for _ in mixed]
    if not ended:
        ends[-1] = b""
    content = b"".join(line + end for line, end in zip(mixed, ends, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "questions.jsonl")
        path.write_bytes(codecs.BOM_UTF8 * mark + content)
        same_as_questions(path)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(-3, 3) | st.integers(-200, 200), min_size=1, max_size=3), st.booleans())
@example([0, 0], True)
@example([-1, 1], False)
def test_lines_that_end_about_the_end_of_a_block(shifts, twice):
    """A line of about a block, or two, then others: each end of line comes on either side of a block's end."""
    long = [{"prompt": "x" * ((2 if twice else 1) * BLOCK - 14 + shift)} for shift in shifts]
    rows = [row for one in long for row in (one, {"prompt": "글을 읽으세요."}, {"prompt": "b"})]
    with tempfile.TemporaryDirectory() as folder:
        same_as_questions(write(Path(folder), *rows))


def test_parts_begin_at_their_first_line(tmp_path):
    """Workers seek to a part: its bytes from there are its lines."""
    rows = [{"prompt": f"{number} " + "글" * (number % 50)} for number in range(3 * PART_PAGES + 5)]
    path = tmp_path / "questions.jsonl"
    encoded = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\r\n" + b"\r\n\n".join(encoded))
    parts = [listed.part for listed in lines(path).parts()]
    assert [part.count for part in parts] == [PART_PAGES] * 3 + [5]
    assert [part.first for part in parts] == [2 + 2 * PART_PAGES * number for number in range(4)]
    for number, part in enumerate(parts):
        first = encoded[PART_PAGES * number]
        assert path.read_bytes()[part.offset : part.offset + len(first)] == first
    pages = same_as_questions(path)
    assert [page.prompt for page in pages] == [row["prompt"] for row in rows]
    last = [page.prompt for page in lines(path).pages(parts[-1])]  # without those before it
    assert last == [row["prompt"] for row in rows[-5:]]


def test_pictures_are_those_of_open_questions(tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for seed, name in enumerate(["pages/1.png", unicodedata.normalize("NFD", "영수증.png"), "elsewhere/far::2.png"]):
        noise = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    path = write(
        tmp_path,
        {"image": "pages/1.png", "prompt": "What?"},
        {"image": unicodedata.normalize("NFC", "영수증.png")},
        {"prompt": "Hello"},
        {"image": str(tmp_path / "elsewhere" / "far::2.png")},
        {"image": "pages/../pages/1.png"},
        {"image": "elsewhere/far::2.png"},
    )
    pages = same_as_questions(path)
    for page, (_, document) in zip(pages, open_questions(path), strict=True):
        assert same(pixels(page), [] if document.name == "line/3" else [np.asarray(document.image)])


def test_a_line_without_a_prompt_has_that_of_the_run(tmp_path):
    path = write(tmp_path, {"image": "a.png"}, {"image": "b.png", "prompt": "Mine?"})
    assert [page.prompt for page in listed_pages(lines(path, "What is the total?"))] == ["What is the total?", "Mine?"]
    assert [page.prompt for page in listed_pages(lines(path))] == ["Read the text.", "Mine?"]


BAD = {
    "broken": b'{"image": ',
    "a list": b"[1]",
    "nothing asked": b'{"answer": "12"}',
    "half a character": b'{"prompt": "\\ud83d"}',
    "CP949": '{"prompt": "합계"}'.encode("cp949"),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_line_is_a_page_with_its_error(case, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{"prompt": "first"}\n\n' + BAD[case] + b'\n{"prompt": "last"}\n')
    first, bad, last = listed_pages(lines(path))
    assert (first.prompt, bad.prompt, last.prompt) == ("first", "", "last")
    assert bad.document == "line 3"
    with pytest.raises(InputError) as caught:
        pixels(bad)
    assert str(caught.value).startswith(f"{path}: line 3 is not ")


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_first_line_is_refused_at_once(case, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b"\n" + BAD[case] + b'\n{"prompt": "last"}\n')
    with pytest.raises(InputError) as caught:
        next(lines(path).parts())
    assert str(caught.value).startswith(f"{path}: line 2 is not ")


def test_a_missing_picture_is_a_page_with_its_error(tmp_path):
    path = write(tmp_path, {"image": "none.png"}, {"image": "nope://host/a.png"}, {"image": "a\0.png"})
    says = [
        f"{path}: line 1: {tmp_path}/none.png: no such file",
        f"{path}: line 2: nope://host/a.png: is neither a path nor a URL",
        f"{path}: line 3: {tmp_path}/a\0.png: ",
    ]
    for page, text in zip(listed_pages(lines(path)), says, strict=True):
        with pytest.raises(InputError) as caught:
            pixels(page)
        assert str(caught.value).startswith(text)


@pytest.mark.parametrize("content", [b"", b"\n \n", codecs.BOM_UTF8, codecs.BOM_UTF8 + b"\n\n"])
def test_a_file_without_lines_has_no_parts(content, tmp_path):
    (tmp_path / "questions.jsonl").write_bytes(content)
    assert list(lines(tmp_path / "questions.jsonl").parts()) == []


def test_a_mark_on_a_line_of_its_own_is_passed_over(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + b'\r\n{"prompt": "Hello"}')
    (page,) = same_as_questions(path)
    assert page.document == "line 2"


def test_a_line_may_name_its_document_as_a_row_of_a_table_does(tmp_path):
    """By the first of the three that it has; what `--documents` would take for a question is a name here."""
    path = write(
        tmp_path,
        {"image": "a.png", "id": 7},
        {"image": "a.png", "name": "n", "id": None, "document": "Invoice of May, page 2?"},
        {"prompt": "Hello", "name": "n"},
        {"image": "a.png", "prompt": "?", "document": "", "other": "x"},
    )
    assert [page.document for page in listed_pages(lines(path))] == ["7", "Invoice of May, page 2?", "n", "a.png"]


def test_a_picture_in_place_of_a_name_is_an_error(tmp_path):
    """It would be asked about without being shown."""
    _, page = listed_pages(lines(write(tmp_path, {"prompt": "a"}, {"prompt": "What is it?", "document": "a.png"})))
    with pytest.raises(InputError, match="has no 'image', and its key 'document' is not read"):
        pixels(page)


def test_a_long_line_is_joined_once(tmp_path):
    """With every block that was read of it all before was copied again: 5 GB for a line of 100 MB."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "' + b"x" * 50_000_000 + b'"}\n{"prompt": "b"}\n')
    begun = time.process_time()
    (listed,) = lines(path).parts()
    assert listed.pages == 3
    assert time.process_time() - begun < 0.5
    first, long, last = listed_pages(lines(path))
    assert (first.prompt, len(long.prompt), last.prompt) == ("a", 50_000_000, "b")


def test_a_file_that_has_vanished_since_it_was_listed(tmp_path):
    source = lines(write(tmp_path, {"prompt": "a"}))
    (listed,) = source.parts()
    source.storage.folder.unlink()
    with pytest.raises(InputError, match=r"questions\.jsonl: cannot be read \(No such file"):
        list(source.pages(listed.part))
