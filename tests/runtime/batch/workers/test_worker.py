"""A worker on real pages: its answers are those of `generate`, and each page is in the output once."""

import io
import json
from dataclasses import replace

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from console.errors import InputError
from runtime.batch.workers.worker import Done

from ..answers import GREEDY, TOKENS, job_of, planned, rows_of, work
from ..asked import PROMPT, asked, assert_answered, drawn


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_pages_are_answered_as_generate_does_and_a_damaged_one_has_its_error(
    form, small_shards, exported, reader, scans, pictures, tmp_path
):
    job = job_of(exported("fp16"), scans, tmp_path / "answers", form=form)
    assert [shard.rows for shard in planned(job)] == [2, 1, 2, 1]
    done = work(job, at_once=4)
    assert [(one.answered, one.errors) for one in done] == [(2, 1), (1, 0), (2, 0), (1, 0)]
    assert done[0].error.startswith(f"{scans}/a.png: is not an image")
    damaged, *rows = rows_of(job)
    images = [pictures[0], pictures[1], *drawn(scans / "more" / "d.pdf")]
    for row, image in zip(rows, images, strict=True):
        assert_answered(row, asked(reader, [image]))
    assert len({row["answer"] for row in rows}) > 2
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5]
    assert [(row["document"], row["page"]) for row in rows] == [
        *(("b.png", 1), ("more/c.png", 1)),
        *(("more/d.pdf", number) for number in (1, 2, 3)),
    ]
    assert {row["attempts"] for row in rows} == {1}
    empty = ("answer", "reasoning", "finish", "prompt_tokens", "tokens", "milliseconds")
    assert {damaged[name] for name in empty} == {None}
    assert (damaged["row"], damaged["document"], damaged["page"]) == (0, "a.png", 1)
    assert damaged["error"] == done[0].error
    assert job.output.names("unfinished") == []


def test_a_document_is_one_row_with_all_its_pages(exported, reader, scans, pictures, tmp_path):
    job = job_of(exported("fp16"), scans / "more", tmp_path / "answers", per_document=True, prompt="What is it?")
    work(job)
    image, document = rows_of(job)
    assert_answered(image, asked(reader, [pictures[1]], "What is it?"))
    assert_answered(document, asked(reader, drawn(scans / "more" / "d.pdf"), "What is it?"))
    assert (document["document"], document["page"]) == ("d.pdf", None)


def test_lines_of_text_and_of_pictures(exported, reader, scans, pictures, tmp_path):
    rows = [{"prompt": "Hello"}, {"image": "b.png", "prompt": "무엇?"}, {"prompt": "안녕"}, {"image": "more/c.png"}]
    file = scans / "questions.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "[1]\n", encoding="utf-8")
    job = job_of(exported("fp16"), file, tmp_path / "answers")
    assert [(done.answered, done.errors) for done in work(job)] == [(5, 1)]
    *answered, invalid = rows_of(job)
    images = [[], [pictures[0]], [], [pictures[1]]]
    for row, question, pictured in zip(answered, rows, images, strict=True):
        assert_answered(row, asked(reader, pictured, question.get("prompt", PROMPT)))
    assert [row["document"] for row in answered] == ["line 1", "b.png", "line 3", "more/c.png"]
    assert (invalid["document"], invalid["prompt"]) == ("line 5", "")
    assert invalid["error"].startswith(f"{file}: line 5 is not valid: no object")


def test_several_pictures_of_a_row_are_one_question(exported, reader, pictures, tmp_path):
    files = [io.BytesIO() for _ in pictures]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file, "PNG")
    contents = [file.getvalue() for file in files]
    columns = {"images": pa.array([contents[:2], contents[2:], None], pa.list_(pa.binary())), "id": ["a", "b", "c"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    job = job_of(exported("fp16"), tmp_path / "a.parquet", tmp_path / "answers")
    work(job)
    first, second, empty = rows_of(job)
    assert_answered(first, asked(reader, pictures[:2]))
    assert_answered(second, asked(reader, pictures[2:]))
    assert [row["document"] for row in (first, second, empty)] == ["a", "b", "c"]
    assert empty["error"] == f"{tmp_path}/a.parquet: row 2: has no picture"


SCHEMA = {
    "type": "object",
    "properties": {
        "total": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["receipt", "letter"]},
        "paid": {"type": "boolean"},
    },
    "required": ["total", "kind", "paid"],
    "additionalProperties": False,
}


def test_answers_match_the_schema_and_fill_its_columns(exported, scans, tmp_path):
    options = {**GREEDY, "max_new_tokens": 200}
    model = exported("fp16")
    job = job_of(model, scans / "more", tmp_path / "answers", schema=SCHEMA, prompt="Fill.", options=options)
    work(job)
    rows = rows_of(job)
    assert len(rows) == 4
    for row in rows:
        value = json.loads(row["answer"])
        jsonschema.validate(value, SCHEMA)
        assert {name: row[name] for name in SCHEMA["properties"]} == value
        assert (row["error"], row["finish"]) == (None, "end")


def test_an_answer_that_is_truncated_has_no_fields_but_its_text(exported, scans, tmp_path):
    options = {**GREEDY, "max_new_tokens": 3}
    job = job_of(exported("fp16"), scans / "b.png", tmp_path / "answers", schema=SCHEMA, prompt="?", options=options)
    (done,) = work(job)
    (row,) = rows_of(job)
    cut = "the answer was truncated at 3 tokens; give more --max-new-tokens"
    assert done == Done(0, 1, 1, f"b.png, page 1: {cut}", starts=1)
    assert (row["error"], row["finish"], row["tokens"]) == (cut, "length", 3)
    assert row["answer"].startswith("{")
    assert {row[name] for name in SCHEMA["properties"]} == {None}


def test_sampling_with_a_seed_is_that_of_generate(exported, reader, scans, pictures, tmp_path):
    options = {**GREEDY, "temperature": 1.5, "seed": 3, "thinking": True}
    job = job_of(exported("fp16"), scans / "b.png", tmp_path / "answers", options=options)
    work(job)
    assert_answered(rows_of(job)[0], asked(reader, [pictures[0]], **options))


def test_a_shard_that_is_written_is_not_answered_again(small_shards, exported, scans, tmp_path):
    """Another worker may have written it before it died, or before it could say so."""
    job = job_of(exported("fp16"), scans, tmp_path / "answers", form="jsonl")
    first = work(job)
    files = [tmp_path / "answers" / job.files.name(number) for number in range(4)]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    (scans / "b.png").unlink()
    files[1].unlink()
    again = work(job, "another")
    written = [number == 1 for number in range(4)]
    assert again == [
        replace(done, answered=new * done.answered, starts=int(new)) for done, new in zip(first, written, strict=True)
    ]
    after = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True, True]
    assert job.output.names("unfinished") == []


def test_retried_errors_leave_good_rows_as_they_are(exported, reader, scans, pictures, tmp_path):
    job = job_of(exported("fp16"), scans, tmp_path / "answers")
    (first,) = work(job)
    before = rows_of(job)
    assert first.errors == 1
    pictures[2].save(scans / "a.png")
    assert work(job, "again") == [replace(first, answered=0, starts=0)]
    assert rows_of(job) == before
    (scans / "b.png").unlink()  # it is not opened again
    assert work(replace(job, retry_errors=True), "again") == [Done(0, 1, 0, None, starts=1)]
    mended, *others = rows_of(job)
    assert others == before[1:]
    assert_answered(mended, asked(reader, [pictures[2]]))
    assert (mended["row"], mended["document"], mended["page"], mended["attempts"]) == (0, "a.png", 1, 2)


def test_a_prompt_that_does_not_fit_the_context_says_what_it_needs(exported, reader, tmp_path):
    words = "Read the text. " * 20
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"prompt": "Hello"}) + "\n" + json.dumps({"prompt": words}) + "\n")
    needed = asked(reader, [], words)["prompt_tokens"] + TOKENS
    job = job_of(exported("fp16"), file, tmp_path / "small", max_context=needed - 1)
    work(job)
    short, long = rows_of(job)
    assert_answered(short, asked(reader, [], "Hello"))
    assert long["error"] == (
        f"prompt: {needed - TOKENS} tokens and an answer of {TOKENS} need --max-context {needed}, "
        f"and it is {needed - 1}"
    )
    job = job_of(exported("fp16"), file, tmp_path / "large", max_context=needed)
    work(job)
    assert_answered(rows_of(job)[1], asked(reader, [], words))


def test_more_pages_than_rows_and_openers_are_all_answered(small_shards, exported, reader, tmp_path):
    """Four shards at once, and one row for all of them: none waits for another forever."""
    file = tmp_path / "questions.jsonl"
    prompts = [f"What is {number}?" for number in range(16)]
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    job = job_of(exported("fp16"), file, tmp_path / "answers", max_rows=1, options={**GREEDY, "max_new_tokens": 4})
    assert [(done.answered, done.errors) for done in work(job, at_once=4)] == [(2, 0)] * 8
    for row, text in zip(rows_of(job), prompts, strict=True):
        assert_answered(row, asked(reader, [], text, max_new_tokens=4))


def test_a_source_that_has_lost_pages_is_refused(exported, scans, tmp_path):
    file = scans / "questions.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    job = job_of(exported("fp16"), file, tmp_path / "answers")
    planned(job)
    file.write_text('{"prompt": "a"}\n')
    with pytest.raises(InputError, match=r"questions\.jsonl: has changed since the run was begun; give another"):
        work(job)
    assert job.output.names("pages") == []
