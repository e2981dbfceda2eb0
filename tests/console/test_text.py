"""One form for text that looks the same, and short values in messages."""

import pickle
import unicodedata

import pytest

from console.errors import InputError, naming
from console.text import canonical, escape_surrogates, short_repr, shorten, shorten_message


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (unicodedata.normalize("NFD", "합계 café"), "합계 café"),
        ("a\r\nb\rc\n\r\n", "a\nb\nc\n\n"),
        ("１２ ㄱㅏ ﬁ ① \xa0\u200d\t", "１２ ㄱㅏ ﬁ ① \xa0\u200d\t"),  # NFKC would change all of these
    ],
)
def test_the_canonical_form(text, same):
    assert canonical(text) == same == canonical(same)


def test_short_messages_stay_as_they_are():
    path = "/" + "/".join(["폴더" * 20] * 8)
    assert shorten_message(f"{path}: line 3 is not valid: no 'image'") == f"{path}: line 3 is not valid: no 'image'"
    assert shorten_message("give it as a data: URI") == "give it as a data: URI"


@pytest.mark.parametrize("length", [100, 10_000, 1_000_000])
def test_a_picture_in_a_message_is_a_short_head(length):
    error = InputError(f"/a/q.jsonl: line 2: data:image/png;base64,{'iVBORw0KGgo' * length} is a data: URI; save it")
    assert len(str(error)) < 150
    assert str(error).startswith("/a/q.jsonl: line 2: data:image/png;base64,iVBORw0KGgo")
    assert str(error).endswith("is a data: URI; save it")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    with pytest.raises(InputError) as named, naming("q.jsonl: line 2"):
        raise error
    assert str(named.value) == str(error)


@pytest.mark.parametrize("value", ["a" * 10**6, "합계는 " * 10**6], ids=["a word", "a prompt"])
def test_a_megabyte_in_a_message_is_cut_in_the_middle(value):
    message = str(InputError(f"prompt: {value!r} is not UTF-8, check it"))
    assert len(message) <= 1200
    assert message.startswith(f"prompt: '{value[:100]}")
    assert message.endswith(" is not UTF-8, check it")
    assert shorten_message(message) == message


@pytest.mark.parametrize("longest", [40, 60, 400])
def test_what_is_shortened_has_its_length_and_both_ends(longest):
    """Text of one long word and text of many words alike."""
    for text in ("a" * longest + "b", "a " * longest + "b"):
        short = shorten(text, longest)
        assert len(short) == longest
        assert short[0] + short[-1] == "ab"
        assert f"…[{len(text)} characters]…" in short
    assert shorten("a" * longest, longest) == "a" * longest


def test_a_value_in_a_message_is_short():
    assert short_repr([1, "2"]) == "[1, '2']"
    assert short_repr("x" * 5000) == f"'{'x' * 13}…[5002 characters]…{'x' * 6}'"


def test_what_no_file_can_hold_is_an_escape():
    assert escape_surrogates(b"a\xff.png".decode("utf-8", "surrogateescape")) == "a\\udcff.png"
    assert escape_surrogates("합계 😀") == "합계 😀"
