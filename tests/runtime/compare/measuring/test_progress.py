"""What a comparison keeps on disk, and what it resumes from."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from calib_data.document import Document
from console.errors import InputError
from runtime.compare.measuring.progress import PROGRESS, Progress
from runtime.compare.result import DocumentResult, ModelResult

SETTINGS = {"count": 2}
FIRST = Document(Image.new("RGB", (4, 4)), "What is it?", "one", "first.png")
SECOND = Document(Image.new("RGB", (4, 4), "red"), "What is it?", "two\u2028\x85lines 합계", "second.png")


def measured(document):
    return DocumentResult(
        document.name,
        document.prompt,
        document.answer,
        {"turn_end": [1]},
        ModelResult(None, [-0.5, None], [2, None]),
        [],
        [],
    )


@pytest.fixture
def kept(tmp_path):
    with Progress(tmp_path, SETTINGS) as progress:
        for document in (FIRST, SECOND):
            progress.add(document.digest(), measured(document))
    return tmp_path


def test_documents_are_found_again(kept):
    with Progress(kept, SETTINGS) as progress:
        assert progress[FIRST.digest()] == measured(FIRST)
        assert progress[SECOND.digest()] == measured(SECOND)


def test_another_picture_question_or_answer_is_another_document(kept):
    with Progress(kept, SETTINGS) as progress:
        for changed in (
            {"answer": "three"}, {"also": ("1",)}, {"prompt": "And now?"}, {"picture": SECOND.image},
            {"name": "other.png"},
        ):  # fmt: skip
            assert replace(FIRST, **changed).digest() not in progress


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_that_was_being_written_is_measured_again(cut, kept):
    """Wherever it was cut, within a letter of several bytes too; what is kept then is whole."""
    content = (kept / PROGRESS).read_bytes()
    (kept / PROGRESS).write_bytes(content[: -4 * cut])
    for _ in range(2):
        with Progress(kept, SETTINGS) as progress:
            assert progress[FIRST.digest()] == measured(FIRST)
            assert SECOND.digest() not in progress
    with Progress(kept, SETTINGS) as progress:
        progress.add(SECOND.digest(), measured(SECOND))
    assert (kept / PROGRESS).read_bytes() == content


def test_folders_that_are_refused(kept, tmp_path):
    with pytest.raises(InputError, match="holds a comparison of other models or documents"):
        Progress(kept, {"count": 3})
    with (kept / PROGRESS).open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(InputError, match=rf"{PROGRESS}: is damaged .*; delete it and run again"):
        Progress(kept, SETTINGS)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is a file, not a folder; give another --output"):
        Progress(tmp_path / "file", SETTINGS)


def test_a_folder_is_written_by_one_run_at_a_time(tmp_path):
    """The lock lies in it no longer than that."""
    with Progress(tmp_path / "out", SETTINGS) as progress:
        progress.add(FIRST.digest(), measured(FIRST))
        for settings in (SETTINGS, {"count": 3}):
            with pytest.raises(InputError, match=r"out is being written by another run; wait for it or give another"):
                Progress(tmp_path / "out", settings)
        progress.add(SECOND.digest(), measured(SECOND))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [PROGRESS]
    with Progress(tmp_path / "out", SETTINGS) as progress:
        assert progress[SECOND.digest()] == measured(SECOND)


def test_settings_alone_keep_nothing(kept):
    """What an older version left of a comparison that was refused does not refuse another."""
    settings = (kept / PROGRESS).read_bytes().splitlines(keepends=True)[0]
    (kept / PROGRESS).write_bytes(settings)
    with Progress(kept, {"count": 3}) as progress:
        progress.add(FIRST.digest(), measured(FIRST))
    assert [json.loads(line).get("count") for line in (kept / PROGRESS).read_text().splitlines()] == [3, None]


def test_before_the_first_document_there_is_no_file(kept, tmp_path):
    with Progress(tmp_path / "new", SETTINGS):
        assert not (tmp_path / "new" / PROGRESS).exists()
    assert not (tmp_path / "new").exists()
    content = (kept / PROGRESS).read_bytes()
    with Progress(kept, SETTINGS):
        pass
    assert (kept / PROGRESS).read_bytes() == content
    with pytest.raises(InputError, match=r"cannot be written \(.*\); give another --output"):
        Progress(kept / PROGRESS / "out", SETTINGS)


def test_without_a_folder_it_is_memory():
    with Progress(None, SETTINGS) as progress:
        progress.add(FIRST.digest(), measured(FIRST))
        assert progress[FIRST.digest()] == measured(FIRST)
        assert SECOND.digest() not in progress
