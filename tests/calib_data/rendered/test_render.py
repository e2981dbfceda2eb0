"""Rendered documents: splits that cannot meet, ground truth where the ink is, the same pixels for the same seed."""

import numpy as np
import pytest

from calib_data import splits
from calib_data.rendered import fonts, render, vocabulary

COUNT = 60


@pytest.fixture(scope="module")
def drawn():
    return {
        split: [render.render(split, 3, index, kind) for kind in render.KINDS for index in range(COUNT)]
        for split in splits.SPLITS
    }


def test_every_value_belongs_to_the_split_of_its_document(drawn):
    for split, pages in drawn.items():
        for page in pages:
            assert page.fields
            assert {splits.split_of_value(value) for value in page.fields.values()} == {split}


def test_no_line_document_or_answer_is_shared_between_splits(drawn):
    for strings in ("text", "answer"):
        seen = [
            {page.text if strings == "text" else page.document.answer for page in pages} for pages in drawn.values()
        ]
        assert not seen[0] & seen[1]
        assert not seen[0] & seen[2]
        assert not seen[1] & seen[2]


def test_splits_take_the_shares_they_promise():
    names = [splits.split_of_value(str(number)) for number in range(5000)]
    assert [round(names.count(split) / 5000, 1) for split in splits.SPLITS] == [0.8, 0.1, 0.1]


def test_the_same_arguments_give_the_same_pixels_and_another_seed_others():
    first, again, other = (render.render("training", seed, 4, "transcription") for seed in (0, 0, 1))
    np.testing.assert_array_equal(np.asarray(first.document.image), np.asarray(again.document.image))
    assert (first.text, first.document.prompt, first.boxes) == (again.text, again.document.prompt, again.boxes)
    assert first.text != other.text


def test_boxes_hold_the_printed_characters_in_reading_order(drawn):
    for page in drawn["evaluation"]:
        assert "".join(box.char for box in page.boxes) == "".join(page.text.split())


def test_boxes_lie_where_the_ink_is(drawn):
    for page in drawn["evaluation"]:
        pixels = np.asarray(page.document.image.convert("L"), float)
        paper = np.median(pixels)
        dark = pixels < paper - 60  # noise has a deviation of at most 12
        inside = np.zeros_like(dark)
        for box in page.boxes:
            left, top = max(0, int(box.left) - 2), max(0, int(box.top) - 2)
            area = np.s_[top : int(box.bottom) + 3, left : int(box.right) + 3]
            assert pixels[area].min() < paper - 50, (page.document.name, box)
            inside[area] = True
        assert dark[~inside].mean() < 0.002, page.document.name


def test_pages_keep_their_size_through_the_processor(drawn):
    sizes = {page.document.image.size for pages in drawn.values() for page in pages}
    assert all(width % 28 == 0 and height % 28 == 0 and width * height >= 3136 for width, height in sizes)
    assert any(width >= 12 * 28 and height >= 8 * 28 for width, height in sizes)


def test_three_to_eight_rows_and_every_kind_of_layout(drawn):
    rows = {page.text.count("\n") + 1 for page in drawn["training"] if page.document.name.split("/")[2] != "line"}
    assert rows >= {3, 4, 5, 6, 7, 8}
    printed = {line for page in drawn["training"] for line in page.text.split("\n")}
    for names in vocabulary.TITLES.values():
        assert printed & {title for language in names for title in language}
    assert any(line.startswith("Dear ") for line in printed)


def test_questions_ask_for_a_field_and_answer_its_value(drawn):
    questions = {question: key for key, pair in vocabulary.QUESTIONS.items() for question in pair}
    asked = [page for page in drawn["evaluation"] if page.document.name.split("/")[2] == "field"]
    assert {page.document.prompt for page in asked} > {"What is the total?", "합계는 얼마입니까?"}
    for page in asked:
        assert page.document.answer == page.fields[questions[page.document.prompt]]
        assert page.document.answer in page.text


def test_the_alphabet_holds_everything_that_is_printed(drawn):
    printed = {box.char for pages in drawn.values() for page in pages for box in page.boxes}
    assert printed <= set(vocabulary.ALPHABET)


def test_the_held_out_font_is_never_drawn_unasked():
    assert fonts.HELD_OUT_FONT not in fonts.TRAINING_FONTS
    usual = render.render("evaluation", 0, 0, "line")
    unseen = render.render("evaluation", 0, 0, "line", fonts.HELD_OUT_FONT)
    assert usual.text == unseen.text
    assert np.asarray(usual.document.image).shape == np.asarray(unseen.document.image).shape
    assert (np.asarray(usual.document.image) != np.asarray(unseen.document.image)).any()


@pytest.mark.parametrize("name", [*fonts.TRAINING_FONTS, fonts.HELD_OUT_FONT])
def test_every_character_has_a_glyph_of_its_own(name):
    missing = bytes(fonts.load("sans-cjk", 24).getmask("\U0010fffd"))
    shapes = {}
    for char in vocabulary.ALPHABET:
        (run, font), *rest = fonts.runs(char, name)
        assert (run, rest) == (char, [])
        mask = fonts.load(font, 24).getmask(char)
        assert mask.getbbox() is not None, char
        assert bytes(mask) != missing, char
        shapes.setdefault((font, mask.size, bytes(mask)), char)
    assert len(shapes) > len(vocabulary.ALPHABET) - 3
