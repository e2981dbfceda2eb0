"""Scores of answers whose scores are known by hand, and the command's numbers."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from calib_data.document import Document
from calib_data.sources import open_documents
from console.errors import InputError
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.evaluate import ANSWER_TOKENS, Scored, evaluation_documents, score, score_all, summary
from runtime.model import Model
from runtime.prompt import build_prompt

from .damage import edit_json

LINE = Scored(
    name="line",
    truth="abcd",
    answer="abcd",
    ids=[1, 2, 3, 4],
    seconds=0.5,
    finished=True,
    exact_match=1.0,
    cer=0.0,
    anls=1.0,
)


@pytest.fixture(scope="module")
def document() -> Document:
    (document,) = open_documents(split="evaluation", count=1, seed=21, kind="line")
    return document


@pytest.fixture(scope="module")
def answer(document, reader) -> str:
    tokens = list(generate(reader, build_prompt(reader, document.prompt, [document.image]), greedy, ANSWER_TOKENS))
    return reader.chat.decode(tokens).strip()


def test_a_summary_is_the_mean_over_documents():
    wrong = replace(LINE, ids=[1] * 6, seconds=1.5, exact_match=0.0, cer=0.5, anls=0.6)
    result = summary([LINE, wrong, LINE, LINE])
    assert result == {
        "documents": 4,
        "exact_match": 0.75,
        "cer": 0.125,
        "anls": pytest.approx(0.9),
        "seconds": 3.0,
        "tokens_per_second": 6.0,
    }


def test_the_models_own_answer_scores_full_marks(document, answer, reader):
    scored, prompt = score(reader, replace(document, answer=answer))
    assert (scored.answer, scored.truth, scored.name) == (answer, answer, document.name)
    assert (scored.exact_match, scored.cer, scored.anls) == (1.0, 0.0, 1.0)
    assert scored.seconds > 0
    assert prompt.ids.tolist() == build_prompt(reader, document.prompt, [document.image]).ids.tolist()


@pytest.mark.parametrize(("characters", "tokens"), [(10, ANSWER_TOKENS), (300, 600)])
def test_a_long_page_is_read_to_its_end_and_an_endless_answer_is_not(characters, tokens, document, copied):
    edit_json(copied / "generation_config.json", eos_token_id=0)  # padding, which no answer contains
    scored, _ = score(Model(copied, "cpu"), replace(document, answer="x" * characters))
    assert len(scored.ids) == tokens


def test_scores_are_those_of_the_edits(document, answer, reader):
    """With `n` characters answered and four more in the truth, four edits are missing."""
    scored, _ = score(reader, replace(document, answer=answer + "#@#@"))
    length = len(answer) + 4
    assert scored.exact_match == 0.0
    assert scored.cer == pytest.approx(4 / length)
    assert scored.anls == pytest.approx(1 - 4 / length if length > 8 else 0.0)


def test_the_best_of_several_true_answers_counts(document, answer, reader):
    far, near = "nothing of this", answer + "#"
    scored, _ = score(reader, replace(document, answer=far, also=(near, far)))
    assert (scored.truth, scored.exact_match) == (far, 0.0)
    assert scored.cer == pytest.approx(1 / len(near))
    assert scored.anls == pytest.approx(1 - 1 / len(near))
    scored, _ = score(reader, replace(document, answer=far, also=(near, answer)))
    assert (scored.truth, scored.exact_match, scored.cer, scored.anls) == (far, 1.0, 0.0, 1.0)


def test_documents_without_an_answer_are_refused(document, tmp_path):
    for number in range(12):  # some of them fall into the evaluation split
        document.image.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(str(number))
    drawn = evaluation_documents(str(tmp_path), 12, 0, None)
    assert [one.name for one in drawn] == [f"{one.answer}.png" for one in drawn]
    (tmp_path / drawn[-1].name).with_suffix(".txt").unlink()
    with pytest.raises(InputError, match=f"^{drawn[-1].name}: has no known answer"):
        evaluation_documents(str(tmp_path), 12, 0, None)


def test_fewer_documents_than_asked_for_are_said(tmp_path, capsys):
    for number in range(12):
        Image.new("L", (56, 56), number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("yes")
    found = len(evaluation_documents(str(tmp_path), 12, 0, None))
    why = "has no more for evaluation, other pages are kept for calibration"
    assert capsys.readouterr().err == f"{found} documents instead of 12 ({tmp_path} {why})\n"
    assert len(evaluation_documents(str(tmp_path), found, 0, None)) == found
    assert capsys.readouterr().err == ""


def test_the_command_prints_one_object(command, exported, reader):
    documents = open_documents(split="evaluation", count=2, seed=4, kind="line")
    expected = summary([score(reader, document)[0] for document in documents])
    arguments = "--model", exported("fp16"), "--count", 2, "--seed", 4, "--kind", "line"
    code, out, _ = command("evaluate", *arguments, "--json")
    assert code == 0
    assert out.count("\n") == 1
    result = json.loads(out)
    for name in ("documents", "exact_match", "cer", "anls"):
        assert result.pop(name) == expected[name]
    assert result.pop("seconds") > 0
    assert result.pop("tokens_per_second") > 0
    assert result == {"model": str(exported("fp16")), "kind": "line", "seed": 4, "source": "rendered"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--count", "0"), "--count"),
        (("--kind", "poem"), "'poem' is not one of 'line', 'field', 'transcription'"),
        (("--documents", "nowhere/at/all.pdf"), "nowhere/at/all.pdf: no such file"),
        (("--model", "nowhere"), "nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line(arguments, says, command, exported):
    model = () if "--model" in arguments else ("--model", exported("fp16"))
    code, out, err = command("evaluate", "--count", 1, *model, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_a_source_without_answers_is_one_line(command, exported, tmp_path):
    for number in range(12):  # some of them fall into the evaluation split
        Image.new("L", (56, 56), number).save(tmp_path / f"{number}.png")
    code, out, err = command("evaluate", "--model", exported("fp16"), "--documents", tmp_path, "--count", 1)
    assert (code, out) == (2, "")
    assert "png: has no known answer, so it cannot be scored" in err


@pytest.mark.slow
def test_documents_are_scored_together_as_alone(reader):
    """With reasoning and without, of answers of different lengths."""
    kinds = ("line", "field", "transcription", "reasoning")
    documents = [open_documents(split="evaluation", count=3, seed=2, kind=kind) for kind in kinds]
    documents = [document for row in zip(*documents, strict=True) for document in row]
    together = list(score_all(reader, documents))
    for document, scored in zip(documents, together, strict=True):
        assert replace(scored, seconds=0) == replace(score(reader, document)[0], seconds=0)
        assert scored.seconds > 0
    assert summary(together, seconds=2.0)["tokens_per_second"] == sum(len(one.ids) for one in together) / 2
