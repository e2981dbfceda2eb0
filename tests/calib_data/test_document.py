"""A document's reasoning: where it is, and what is refused."""

import re

import pytest
from PIL import Image

from calib_data.document import Document
from console.errors import InputError


def document(answer, also=(), reasoning=None):
    return Document(None, "What is the total?", answer, "a.png", also, reasoning)


@pytest.mark.parametrize(
    ("answer", "reasoning", "text"),
    [
        ("<think>\nI look.\nThere.\n</think>\n\n12", "I look.\nThere.", "12"),
        ("I look.\n</think>\n\n12", "I look.", "12"),
        ("\n<think> I look. </think>12\n13 ", "I look.", "12\n13"),
        ("<think>\n\n</think>\n\n12", None, "12"),
        ("<think>a</think><think>b</think>", "a", "<think>b</think>"),
        (" 12 ", None, " 12 "),
        ("Write <think> here", None, "Write <think> here"),
        (None, None, None),
    ],
)
def test_an_answer_may_hold_its_reasoning(answer, reasoning, text):
    """As the answers of reasoning models and datasets of them do; the first `</think>` ends it, as in generation."""
    found = document(answer)
    assert (found.reasoning, found.answer) == (reasoning, text)


def test_every_true_answer_is_without_reasoning():
    found = document("<think>a</think>12", ("<think>b</think>twelve", "XII"), "a")
    assert (found.reasoning, found.answer, found.also) == ("a", "12", ("twelve", "XII"))
    assert document("12", reasoning=" \n").reasoning is None


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (("<think>I look. 12",), "a.png: its answer begins with <think> and has no </think>; add it, or drop both"),
        (("<think>a</think>12", (), "b"), "a.png: has reasoning of its own and another in its answer; keep one"),
        ((None, (), "b"), "a.png: has reasoning without an answer; add the answer"),
    ],
)
def test_reasoning_that_cannot_be_used_is_named(parts, says):
    with pytest.raises(InputError, match=f"^{re.escape(says)}$"):
        document(*parts)


def test_reasoning_is_part_of_the_digest_and_documents_without_keep_theirs():
    """References of older versions hold digests of documents without reasoning."""
    plain = Document(Image.new("RGB", (2, 1)), "합계?", "12", "a.png", ("XII",))
    assert plain.digest() == "9e7037bccbc74d2ddbd270a934b7b460bce918006eb1c148e8efc23a286888d8"
    assert document("12", reasoning="a").digest() != document("12").digest() != document("12", ("a",)).digest()
