"""Text and JSON files, and the one line for what they are not."""

import unicodedata

import pytest

from console.errors import InputError
from console.files import existing, read_object, read_text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"\xff\xfa", "cannot be read ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)"),
        (b'{"a": ', "is not valid JSON (Expecting value: line 1 column 7 (char 6))"),
        (b"[" * 100_000, "is not valid JSON (maximum recursion depth exceeded while decoding a JSON array from a"),
        (b"[1]", "is not a JSON object"),
    ],
    ids=["missing", "binary", "cut", "deep", "list"],
)
def test_a_file_that_is_no_json_object_is_one_line(tmp_path, content, says):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_object(path, "restore it")
    assert str(error.value).startswith(f"{path}: {says}")
    assert str(error.value).endswith(", restore it")
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.json").write_text('{"a": "합계"}', encoding="utf-8-sig")
    assert read_text(tmp_path / "a.json") == '{"a": "합계"}'
    assert read_object(tmp_path / "a.json") == {"a": "합계"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_text_of_windows_is_read_by_its_mark(tmp_path, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "a.txt").write_bytes((mark + "합계 12\r\n끝").encode(encoding))
    assert read_text(tmp_path / "a.txt") == "합계 12\n끝"


@pytest.mark.parametrize("content", ["합계".encode("cp949"), "Total 12".encode("utf-16-le"), b"\xff\xfea"])
def test_text_of_another_encoding_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"^{tmp_path}/a\.txt: cannot be read \([^\n]*\), save it as UTF-8$"):
        read_text(tmp_path / "a.txt", "save it as UTF-8")


@pytest.mark.parametrize(("stored", "asked"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_is_found_in_either_unicode_form(tmp_path, stored, asked):
    name = "영수증/café.png"
    file = tmp_path / unicodedata.normalize(stored, name)
    file.parent.mkdir()
    wanted = tmp_path / unicodedata.normalize(asked, name)
    assert existing(wanted) == wanted  # nothing to find yet
    file.touch()
    assert existing(wanted) == existing(file) == file
    assert existing(tmp_path / "nowhere" / "a.png") == tmp_path / "nowhere" / "a.png"
    assert existing(tmp_path / ("a" * 10_000)) == tmp_path / ("a" * 10_000)
