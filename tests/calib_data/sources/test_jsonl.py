"""The lines of a JSONL file as a source."""

import base64
import json
import unicodedata
from itertools import combinations
from pathlib import Path

import pytest

from calib_data.sources import open_documents, open_questions
from calib_data.splits import split_of_picture, split_of_prompt
from console.errors import InputError

from .pages import OWN_SPLITS, open_all, picture, picture_bytes


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


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_has_a_key_of_its_own_or_is_in_the_answer(key, tmp_path, capsys):
    picture().save(tmp_path / "a.png")
    own = {"image": "a.png", "prompt": "Who?", "answer": "Kim", key: "I look for a name."}
    inside = {"image": "a.png", "prompt": "Who?", "answer": "<think>I look for a name.</think>Kim"}
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, (own, inside))))
    found = open_documents(str(tmp_path / "one.jsonl"), split=split_of_picture(picture()), count=5)
    assert [(one.reasoning, one.answer) for one in found] == [("I look for a name.", "Kim")] * 2
    assert "not read" not in capsys.readouterr().err


def test_jsonl_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "pages").mkdir()
    picture().save(tmp_path / "pages" / "a.png")
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"image": "pages/a.png", "prompt": "Read."}))
    (document,) = open_documents(str(path), split=split_of_picture(picture()), count=5)
    assert (document.prompt, document.answer, document.image.size) == ("Read.", None, picture().size)


@pytest.mark.parametrize("row", [{"image": "a.png"}, {"image": "a.png", "prompt": None}])
def test_a_picture_without_a_prompt_is_to_be_read(row, tmp_path):
    """In a .jsonl as in a folder."""
    picture().save(tmp_path / "a.png")
    (tmp_path / "one.jsonl").write_text(json.dumps(row))
    split = split_of_picture(picture())
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
    assert all(split_of_prompt(d.prompt) == split for split, part in parts.items() for d in part)
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
    path, image = folder / "separators.jsonl", "00.png"
    row = {"image": image, "prompt": "a\u2028b\u0085c\u2029", "answer": "d\u2028"}
    path.write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode() * 2)
    found = open_documents(str(path), split=split_of_picture(picture(0)), count=5)
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


def rows(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


@pytest.fixture
def page(tmp_path):
    picture().save(tmp_path / "a.png")
    return tmp_path / "rows.jsonl"


def only(path):
    (document,) = [document for part in open_all(path).values() for document in part]
    return document


@pytest.mark.parametrize("image", ["image", "images", "file_name", "image_path"])
@pytest.mark.parametrize("asked", ["prompt", "question", "query"])
@pytest.mark.parametrize("answered", ["answer", "answers", "text", "ground_truth"])
def test_usual_names_of_keys_are_read(image, asked, answered, page, capsys):
    document = only(rows(page, {image: "a.png", asked: "합계는?", answered: "12"}))
    assert (document.prompt, document.answer, document.also) == ("합계는?", "12", ())
    assert document.image.size == picture().size
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "first", "also"),
    [(["5", "five", "5 won"], "5", ("five", "5 won")), (["5"], "5", ()), ([], None, ()), (None, None, ())],
)
def test_several_answers_are_equally_true(given, first, also, page):
    document = only(rows(page, {"image": "a.png", "question": "?", "answers": given}))
    assert (document.answer, document.also) == (first, also)


@pytest.mark.parametrize("key", ["image", "images"])
def test_a_picture_may_be_in_a_list_of_one(key, page):
    assert only(rows(page, {key: ["a.png"], "prompt": "?"})).image.size == picture().size


def test_a_question_of_generate_has_the_same_names(page):
    rows(page, {"image": "a.png", "question": "What?", "answers": ["5"]}, {"query": "Why?"}, {"file_name": "a.png"})
    assert [document.prompt for _, document in open_questions(page)] == ["What?", "Why?", "Read the text."]


def test_keys_that_are_not_read_are_named_once(page, capsys):
    rows(page, *({"image": "a.png", "question": "?", "answers": ["5"], "docId": i, "boxes": [[1]]} for i in range(3)))
    for _ in range(2):
        open_all(page)
    open_questions(page)
    assert capsys.readouterr().err == f"{page}: keys that are not read: 'docId', 'boxes'\n"


@pytest.mark.parametrize("harmless", [7, "scan-7", None, [1, 2], {"x": 1}, True])
def test_an_unread_key_that_asks_nothing_leaves_the_default_prompt(harmless, page, capsys):
    assert only(rows(page, {"image": "a.png", "answer": "5", "id": harmless})).prompt == "Read the text."
    assert capsys.readouterr().err == f"{page}: keys that are not read: 'id'\n"


BAD_ROWS = {
    "two prompts": ({"prompt": "a", "question": "b"}, "it has 'prompt' and 'question', keep one of them"),
    "two answers": ({"prompt": "a", "answer": "b", "answers": ["b"]}, "it has 'answer' and 'answers', keep one of th"),
    "two images": ({"image": "a.png", "file_name": "b.png"}, "it has 'image' and 'file_name', keep one of them"),
    "a key twice": ('{"prompt": "a", "prompt": "b"}', "key 'prompt' is there twice, keep one"),
    "an answer of numbers": ({"prompt": "a", "answers": [5]}, "'answers' is not text, give one text or a list of tex"),
    "a question of numbers": ({"image": "a.png", "question": 5}, "'question' is not text"),
    "a phrase": ({"image": "a.png", "instruction": "Give the total"}, "its key 'instruction' is not read; rename it"),
    "another case": ({"image": "a.png", "Question": "합계는?"}, "its key 'Question' is not read; rename it"),
    "messages": ({"image": "a.png", "messages": [{"role": "user", "content": "Why so?"}]}, "its key 'messages' is not"),
    "two pictures": ({"images": ["a.png", "b.png"], "prompt": "?"}, "'images' has 2 pictures, and one is read; give e"),
    "a picture of numbers": ({"image": [5], "prompt": "?"}, "'image' is not text"),
    "another picture": ({"img": "a.PNG", "prompt": "?"}, "it has no 'image', and its key 'img' is not read; rename it"),
    "a picture below": ({"media": [{"path": "a.jpg"}], "prompt": "?"}, "its key 'media' is not read; rename it to 'im"),
    "a picture inline": ({"url": "data:image/png;base64,iVBO", "prompt": "?"}, "its key 'url' is not read; rename it"),
    "nothing asked": ({"image": "a.png", "prompt": ""}, "'prompt' is empty; write a question, or leave it out"),
    "nothing to see": ({"image": "a.png", "query": "\u200b\u00a0"}, "'query' is empty; write a question, or leave"),
    "a prompt alone": ({"instruction": "Give the total"}, "its key 'instruction' is not read; rename it to 'prompt'"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_keys_that_could_change_the_question_are_refused(case, page):
    row, says = BAD_ROWS[case]
    rows(page, {"image": "a.png", "prompt": "?"}, row)
    for opened in (open_all, open_questions):
        with pytest.raises(InputError) as error:
            opened(page)
        assert str(error.value).startswith(f"{page}: line 2 is not valid: ")
        assert says in str(error.value)


def test_text_is_the_page_of_a_dataset_and_may_be_the_question_of_a_benchmark(page):
    """LLaVA's question files have the question as `text`."""
    rows(page, {"image": "a.png", "text": "What is the total?"})
    assert only(page).answer == "What is the total?"
    with pytest.raises(InputError, match=r"line 1 is not valid: it has no 'prompt', and its key 'text' is not read; "):
        open_questions(page)


@pytest.mark.parametrize(("stored", "listed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_an_image_is_found_in_either_unicode_form(stored, listed, tmp_path):
    name = "영수증 é.png"
    picture().save(tmp_path / unicodedata.normalize(stored, name))
    path = rows(tmp_path / "rows.jsonl", {"image": unicodedata.normalize(listed, name)})
    assert only(path).image.size == picture().size


def test_a_data_uri_is_named_by_a_short_head(page):
    uri = f"data:image/png;base64,{base64.b64encode(picture_bytes(0)).decode()}"
    rows(page, {"image": uri, "prompt": "?"})
    with pytest.raises(InputError) as error:
        open_all(page)
    assert str(error.value).startswith(f"{page}: line 1: {page.parent}/data:image/png;base64,")
    assert str(error.value).endswith("; save what a data: URI holds as a file")
    assert len(str(error.value)) < len(f"{page}") + len(f"{page.parent}") + 200
