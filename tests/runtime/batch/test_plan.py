"""How pages are packed into shards, and what of a plan a later run reads."""

import json
import uuid
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.errors import InputError
from runtime.batch.job import Job
from runtime.batch.plan import LARGEST, PLAN, read_plan, read_shard, shard_pages, shards, write_plan
from runtime.batch.source.folder import Folder
from runtime.batch.source.open import open_source
from runtime.batch.source.page import PART_PAGES, Listed, Part
from runtime.batch.storage import Storage

OPTIONS = settings(max_examples=100, deadline=None, derandomize=True, database=None)
DOCUMENTS = st.builds(lambda file, pages: Listed(Part(file, 0, 1), pages), st.text(max_size=5), st.integers(1, 200))
PARTS = st.builds(
    lambda file, first, count, offset, error: Listed(Part(file, first, count, offset, error), count),
    st.text(max_size=5) | st.just("a\udcff.png"),
    st.integers(0, 1000),
    st.integers(1, PART_PAGES),
    st.integers(0, 1 << 40),
    st.none() | st.text(min_size=1, max_size=5),
)


def apart(listed):
    """Each in a file of its own."""
    files = (f"{number}/{one.part.file}" for number, one in enumerate(listed))
    return [replace(one, part=replace(one.part, file=file)) for one, file in zip(listed, files, strict=True)]


SOURCES = st.lists(DOCUMENTS | PARTS, min_size=1, max_size=60).map(apart)
MOST = st.sampled_from([1, PART_PAGES, LARGEST])


@OPTIONS
@given(SOURCES, MOST)
def test_every_part_is_in_one_shard_in_order_and_none_is_too_large(listed, most):
    packed = list(shards(listed, most))
    assert [part for shard in packed for part in shard.parts] == [one.part for one in listed]
    assert [shard.number for shard in packed] == list(range(len(packed)))
    pages = iter(one.pages for one in listed)
    of_shards = [[next(pages) for _ in shard.parts] for shard in packed]
    for counts, following in zip(of_shards, [*of_shards[1:], [most]], strict=True):
        assert sum(counts) <= most or len(counts) == 1
        assert sum(counts) + following[0] > most, "the next part would have fitted"
    row = 0
    for shard in packed:
        assert shard.first == row
        assert shard.rows == sum(part.count for part in shard.parts)
        row += shard.rows


@OPTIONS
@given(SOURCES)
def test_a_plan_is_read_as_it_was_written(listed):
    output = Storage(f"memory:///plans/{uuid.uuid4()}")
    values = {
        "input": "scans",
        "prompt": "무엇인가요?\n",
        "seed": None,
        "temperature": 0.5,
        "schema": {"type": "object"},
    }
    packed = list(shards(listed, shard_pages(sum(one.pages for one in listed))))
    write_plan(output, values, listed)
    found = read_plan(output)
    assert found is not None
    assert found[0] == values
    assert [(planned.number, planned.rows) for planned in found[1]] == [(shard.number, shard.rows) for shard in packed]
    assert [read_shard(output, planned) for planned in reversed(found[1])] == packed[::-1]


def test_of_two_runs_that_begin_at_once_in_a_bucket_one_plan_holds():
    """Each would otherwise answer shards of its own plan, in files of the same names."""
    output = Storage(f"memory:///plans/{uuid.uuid4()}")
    for name in ("first", "second"):
        write_plan(output, {"input": name}, [Listed(Part(f"{name}.png", 0, 1), 1)])
    settings, (shard,) = read_plan(output)
    assert (settings, read_shard(output, shard).parts[0].file) == ({"input": "first"}, "first.png")


def test_a_plan_that_was_replaced_is_noticed(tmp_path):
    """The shard would be answered with other pages, under the same number."""
    output = Storage.at(tmp_path)
    listed = [Listed(Part(f"{number}.png", 0, 1), LARGEST) for number in range(3)]
    write_plan(output, {"input": "a"}, listed)
    _, shards = read_plan(output)
    (tmp_path / PLAN).unlink()
    write_plan(output, {"input": "a longer name"}, listed)
    with pytest.raises(InputError, match=r"plan\.jsonl: was replaced while the run reads it \("):
        read_shard(output, shards[1])
    (tmp_path / PLAN).unlink()
    write_plan(output, {"input": "b"}, listed[1:])
    with pytest.raises(InputError, match=r"plan\.jsonl: was replaced while the run reads it \("):
        read_shard(output, shards[2])


@pytest.mark.parametrize(("pages", "most"), [(1, 16), (16 * 512, 16), (20_000, 39), (32_768, 64), (10**6, 64)])
def test_small_runs_have_small_shards(pages, most):
    assert shard_pages(pages) == most


def test_parts_that_follow_one_another_in_a_file_are_one():
    book = [Part("book.pdf", first, min(16, 41 - first)) for first in (1, 17, 33)]
    lines = [Part("", 1, 16, 0), Part("", 18, 16, 900), Part("", 40, 2, 1800)]  # with empty ones between
    images, whole = [Part("a.png", 0, 1), Part("b.png", 0, 1)], [Part("a.pdf", 0, 1), Part("b.pdf", 0, 1)]
    for given_, packed in (
        (book, [Part("book.pdf", 1, 40)]),
        (lines, [Part("", 1, 34, 0)]),
        (images, images),
        (whole, whole),
    ):
        (shard,) = shards([Listed(part, part.count) for part in given_], 64)
        assert list(shard.parts) == packed


def test_there_is_no_plan_before_it_is_written(tmp_path):
    assert read_plan(Storage.at(tmp_path)) is None
    assert read_plan(Storage.at(tmp_path / "none")) is None


def test_a_source_without_pages_has_no_plan(tmp_path):
    with pytest.raises(InputError, match=r"^scans: holds no pages; give images, PDFs, a \.jsonl or \.parquet file$"):
        write_plan(Storage.at(tmp_path), {"input": "scans"}, [])
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_fails_while_it_is_listed_leaves_no_plan(tmp_path):
    def listed():
        yield Listed(Part("a.png", 0, 1), LARGEST)
        yield Listed(Part("b.png", 0, 1), LARGEST)
        raise InputError("b.parquet: cannot be read")

    with pytest.raises(InputError, match="cannot be read"):
        write_plan(Storage.at(tmp_path), {"input": "scans"}, listed())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"3\n", b'{"input": "a"}\n{"first": 0, "par', b'{"input": "a"}\n[]\n', b"\xff\xfe", b"{}\n{}\n"],
)
def test_a_damaged_plan_is_one_line(content, tmp_path):
    (tmp_path / PLAN).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_plan(Storage.at(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}/{PLAN}: is damaged (")
    assert str(caught.value).endswith("; give another --output")


@pytest.mark.parametrize("lost", range(1, 5))
def test_a_plan_without_one_of_its_lines_is_damaged(lost, tmp_path):
    """Its pages would be missing in the output, and nobody would know."""
    write_plan(Storage.at(tmp_path), {"input": "a"}, (Listed(Part(f"{n}.png", 0, 1), LARGEST) for n in range(3)))
    lines = (tmp_path / PLAN).read_bytes().splitlines(keepends=True)
    (tmp_path / PLAN).write_bytes(b"".join(lines[:lost] + lines[lost + 1 :]))
    with pytest.raises(InputError, match="is damaged \\(lines are missing\\); give another --output"):
        read_plan(Storage.at(tmp_path))


@pytest.fixture
def job(tmp_path) -> Job:
    for name in ("model", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "runtime.json").write_text("{}")
    model, scans, answers = (Storage.at(tmp_path / name) for name in ("model", "scans", "answers"))
    return Job(
        model,
        Folder(scans, None, per_document=False),
        answers,
        options={"temperature": 0.5, "seed": None, "max_new_tokens": 20},
    )


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
CHANGES = {
    "--model": {"model": "other"},
    "--input": {"source": {"storage": Storage("memory://scans")}},
    "--prompt": {"source": {"prompt": "Other?"}},
    "--schema": {"schema": SCHEMA},
    "--per": {"source": {"per_document": True}},
    "--format": {"form": "jsonl"},
    "--temperature": {"options": {"temperature": 0, "max_new_tokens": 20}},
    "--seed": {"options": {"temperature": 0.5, "seed": 0, "max_new_tokens": 20}},
    "--max-new-tokens": {"options": {"temperature": 0.5, "max_new_tokens": 21}},
    "--prompt, --thinking-budget": {
        "source": {"prompt": "Other?"},
        "options": {"temperature": 0.5, "max_new_tokens": 20, "thinking_budget": 3},
    },
}

SAYS = {
    "--model": "with --model ",
    "--input": "with --input ",
    "--prompt": "without --prompt",
    "--schema": "without --schema",
    "--per": "with --per page",
    "--format": "with --format parquet",
    "--temperature": "with --temperature 0.5",
    "--seed": "without --seed",
    "--max-new-tokens": "with --max-new-tokens 20",
    "--prompt, --thinking-budget": "without --prompt and without --thinking-budget",
}


@pytest.mark.parametrize("option", CHANGES)
def test_a_run_with_other_settings_is_refused_by_the_name_of_the_option(option, job, tmp_path):
    changes = {**CHANGES[option]}
    if "model" in changes:
        changes["model"] = Storage.at(tmp_path / "other")
    other = replace(job, **changes | {"source": replace(job.source, **changes.get("source", {}))})
    planned = json.loads(json.dumps(job.planned()))
    with pytest.raises(InputError) as caught:
        other.check_same(planned)
    assert str(caught.value).startswith(f"{job.output.url}: was begun {SAYS[option]}")
    assert str(caught.value).endswith("; run the same command again, or give another --output")
    with pytest.raises(InputError):
        job.check_same(json.loads(json.dumps(other.planned())))


SAME = {
    "device": {"device": "cuda", "threads": 4, "memory_limit": 20.0},
    "rows": {"max_rows": 3, "max_context": 4000},
    "retry": {"retry_errors": True},
    "moved output": {"output": Storage("memory://other")},
    "options left out": {"options": {"temperature": 0.5, "max_new_tokens": 20}},
}


@pytest.mark.parametrize("case", SAME)
def test_what_changes_no_answer_may_change_between_runs(case, job):
    replace(job, **SAME[case]).check_same(json.loads(json.dumps(job.planned())))


def test_a_model_that_was_exported_anew_is_noticed(job, tmp_path):
    planned = json.loads(json.dumps(job.planned()))
    (tmp_path / "model" / "runtime.json").write_text('{"format": 9}')
    with pytest.raises(InputError) as caught:
        replace(job).check_same(planned)
    model = tmp_path / "model"
    assert str(caught.value) == (
        f"{job.output.url}: --model {model} has changed since the run was begun; give another --output"
    )


def test_an_input_that_has_changed_is_noticed(job, tmp_path):
    """Its rows would be mixed with those of the file as it was, or PNGs be read as Parquet."""
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a.png").write_bytes(b"")
    folder = replace(job, source=open_source(Storage.at(scans), None, per_document=False))
    before = json.loads(json.dumps(folder.planned()))
    (scans / "b.png").write_bytes(b"")  # new files need another output, and are no fault
    replace(folder).check_same(before)
    (scans / "b.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"--input .*scans has changed since the run was begun; give another --output"):
        replace(job, source=open_source(Storage.at(scans), None, per_document=False)).check_same(before)
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "1 + 1?"}\n')
    lines = replace(job, source=open_source(Storage.at(file), None, per_document=False))
    before = json.loads(json.dumps(lines.planned()))
    file.write_text('{"prompt": "1 + 2?"}\n')
    with pytest.raises(InputError, match=r"--input .*jsonl has changed since the run was begun; give another --output"):
        replace(lines).check_same(before)


@pytest.mark.parametrize(
    ("before", "now", "retry", "refused"),
    [
        (20, 40, True, False),
        (20, 40, False, True),
        (40, 20, True, True),
        (None, 511, True, True),
        (None, 513, True, False),
    ],
)
def test_answers_may_be_longer_where_those_with_an_error_are_answered_again(before, now, retry, refused, job):
    """A truncated answer is an error of a schema, and it would be truncated again."""
    planned = replace(job, options={} if before is None else {"max_new_tokens": before}).planned()
    later = replace(job, options={"max_new_tokens": now}, retry_errors=retry)
    if refused:
        with pytest.raises(InputError, match=r"was begun with(out)? --max-new-tokens"):
            later.check_same(planned)
    else:
        later.check_same(planned)
