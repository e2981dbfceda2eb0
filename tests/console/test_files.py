"""Text and JSON files, and the one line for what they are not."""

import pytest

from console.errors import InputError
from console.files import read_object, read_text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"\xff\xfe", "cannot be read ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)"),
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
