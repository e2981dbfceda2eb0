"""`python -m runtime batch` where it needs no Ray: what it refuses, and a run that has nothing left to do."""

import json
import uuid

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from calib_data.sources import open_documents
from console.locks import lock, unlock

from ..commands import assert_one_line, process
from .answers import job_of, planned, rows_of, work

SCHEMA = {"type": "object", "properties": {"total": {"type": "integer"}}}
OPTIONS = ("--temperature", 0, "--max-new-tokens", 24)


@pytest.fixture
def scans(tmp_path):
    (tmp_path / "scans").mkdir()
    for number, document in enumerate(open_documents(split="evaluation", count=2, seed=5, kind="line")):
        document.image.save(tmp_path / "scans" / f"{number}.png")
    return tmp_path / "scans"


@pytest.fixture
def memory():
    """A file system that is not local."""
    system = MemoryFileSystem()
    yield system
    system.store.clear()


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--schema", "schema.json"), "--schema: needs a --prompt that says what the fields are"),
        (("--schema", "list.json", "--prompt", "?"), "--schema: is no object with properties"),
        (("--schema", "taken.json", "--prompt", "?"), "--schema: property 'answer' is also a column of the output"),
        (("--schema", "odd.json", "--prompt", "?"), "--schema: "),
        (("--schema", "none.json", "--prompt", "?"), "none.json: no such file, give a file with a JSON schema"),
        (("--input", "none"), "none: no such file or folder"),
        (("--input", "empty"), "empty: holds no pages; give images, PDFs, a .jsonl or .parquet file"),
        (("--input", "notes.txt"), "notes.txt: is no .jsonl, .parquet, .pdf or image"),
        (("--input", "nope://bucket/a"), "nope://bucket/a: is neither a path nor a URL that fsspec reads"),
        (("--input", "a.jsonl", "--per", "document"), "--per document: "),
        (("--input", "broken.jsonl"), "broken.jsonl: line 1 is not valid: "),
        (("--output", "nope://bucket/a"), "nope://bucket/a: is neither a path nor a URL that fsspec reads"),
        (("--output", "notes.txt"), "notes.txt: is a file; give a folder"),
        (("--output", "scans/answers"), "answers: is inside --input; give a folder elsewhere"),
        (("--output", "scans"), "scans: is inside --input; give a folder elsewhere"),
        (("--model", "none"), "none: "),
        (("--device", "cuda"), "reader: not exported for cuda; run: python -m export --model"),
        (("--device", "gpu"), "gpu"),
        (("--device", "cuda:1"), "--device cuda:1: each worker has a GPU of its own; give --device cuda"),
        (("--model", "memory://none"), "memory://none: has no runtime.json; give a model folder that export has"),
        (("--model", "memory://reader", "--temperature", "-1"), "--temperature -1.0: must be 0"),
        (("--model", "memory://reader", "--device", "cuda"), "memory://reader: not exported for cuda; run: python -m"),
        (("--model", "memory://reader", "--schema", "odd.json", "--prompt", "?"), "--schema: "),
        (("--max-context", "1000000"), "--max-context 1000000: must be from 2 to the model's context of "),
        (("--memory-limit", "3"), "--memory-limit: is for a GPU"),
        (("--temperature", "-1"), "--temperature -1.0: must be 0"),
        (("--max-new-tokens", "0"), "Invalid value for '--max-new-tokens'"),
        (("--per", "book"), "--per"),
    ],
)
def test_what_is_refused_is_one_line_and_leaves_nothing(arguments, says, command, exported, scans, monkeypatch, memory):
    folder = scans.parent
    monkeypatch.chdir(folder)
    (folder / "reader").symlink_to(exported("fp16"))
    for path in exported("fp16").glob("*.j*"):  # no weights: they are not read here
        memory.pipe_file(f"/reader/{path.name}", path.read_bytes())
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("notes")
    (folder / "a.jsonl").write_text('{"prompt": "Hello"}\n')
    (folder / "broken.jsonl").write_text("{\n")
    (folder / "list.json").write_text('{"type": "array"}')
    (folder / "taken.json").write_text('{"properties": {"answer": {}}}')
    (folder / "odd.json").write_text('{"properties": {"a": {"type": "no type"}}}')
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    before, folders = files_in(folder), sorted(folder.rglob("*/"))
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    given = {"--model": "reader", "--input": "scans", "--output": "answers"} | given
    assert_one_line(command("batch", *(one for pair in given.items() for one in pair)), says)
    assert (files_in(folder), sorted(folder.rglob("*/"))) == (before, folders)


def test_a_process_says_it_in_one_line_too(exported, scans):
    done = process("batch", "--model", exported("fp16"), "--input", "none", "--output", "answers", cwd=scans.parent)
    assert_one_line((done.returncode, done.stdout, done.stderr), "none: no such file or folder")


@pytest.fixture
def finished(exported, scans):
    """A run that is finished, and its arguments."""
    job = job_of(exported("fp16"), scans, scans.parent / "answers")
    work(job)
    return job, ("--model", exported("fp16"), "--input", scans, "--output", scans.parent / "answers", *OPTIONS)


def test_a_finished_run_only_counts(command, finished):
    job, arguments = finished
    before = files_in(job.output.folder)
    code, out, err = command("batch", *arguments, "--json")
    assert (code, err) == (0, "nothing is left to answer: all rows are written\n")
    summary, rows = json.loads(out), rows_of(job)
    assert (summary["pages"], summary["documents"], summary["answered"], summary["errors"]) == (2, 2, 2, [])
    assert summary["tokens"] == sum(row["tokens"] for row in rows)
    assert files_in(job.output.folder) == before
    code, out, err = command("batch", *arguments, "--retry-errors")
    assert (code, err) == (0, "nothing is left to answer: no row has an error\n")
    assert "2 rows of 2 documents" in out


@pytest.mark.parametrize(
    ("arguments", "was"),
    [
        (("--prompt", "Other?"), "without --prompt"),
        (("--temperature", 1), "with --temperature 0"),
        (("--max-new-tokens", 3, "--seed", 1), "with --max-new-tokens 24 and without --seed"),
        (("--format", "jsonl"), "with --format parquet"),
        (("--per", "document"), "with --per page"),
    ],
)
def test_an_output_of_other_settings_is_refused(arguments, was, command, finished):
    job, given = finished
    before = files_in(job.output.folder)
    says = f"{job.output.url}: was begun {was}; "
    assert_one_line(command("batch", *given, *arguments), says, "run the same command again, or give another --output")
    assert files_in(job.output.folder) == before


def test_an_output_below_a_link_to_the_input_is_refused(command, exported, scans):
    """Its Parquet files would be taken for the source when the run goes on."""
    (scans.parent / "link").symlink_to(scans)
    output = scans.parent / "link" / "answers"
    result = command("batch", "--model", exported("fp16"), "--input", scans, "--output", output)
    assert_one_line(result, f"--output {output}: is inside --input; give a folder elsewhere")
    assert not output.exists()


def test_an_output_that_another_run_writes_is_refused(command, finished):
    job, given = finished
    held = lock(job.output.folder)
    before = files_in(job.output.folder)
    assert_one_line(command("batch", *given), f"{job.output.url} is being written by another run")
    assert files_in(job.output.folder) == before
    unlock(held)
    assert command("batch", *given)[0] == 0


def test_pages_without_their_plan_are_not_added_to(command, finished):
    job, given = finished
    job.output.delete("plan.jsonl")
    assert_one_line(command("batch", *given), f"{job.output.url}: has pages but no plan.jsonl; give an empty --output")


def test_what_a_killed_run_left_half_written_is_deleted(command, finished):
    job, given = finished
    before = files_in(job.output.folder)
    partial = f".000001.parquet.{uuid.uuid4().hex}.partial"
    others = {"notes/.draft.partial": b"of another program", f"notes/{partial}": b"of another folder"}
    (job.output.folder / "notes").mkdir()
    for name, content in {f"pages/{partial}": b"half", f"{partial}": b"half", **others}.items():
        job.output.write(name, content)
    job.output.write("unfinished/000000.json", b"{}")
    job.output.write("unfinished/worker-1", b"2")
    assert command("batch", *given)[0] == 0
    assert files_in(job.output.folder) == before | others


def test_a_damaged_shard_is_one_line(command, finished):
    job, given = finished
    job.output.write("pages/000000.parquet", b"PAR1")
    assert_one_line(command("batch", *given), "pages/000000.parquet: is damaged (", "delete it")


def test_an_output_without_answers_may_be_deleted(command, exported, scans):
    """A start may fail after pages were listed; nothing is lost with it."""
    job = job_of(exported("fp16"), scans, scans.parent / "answers")
    planned(job)
    result = command(
        "batch", "--model", exported("fp16"), "--input", scans, "--output", job.output.url, "--per", "page"
    )
    assert_one_line(result, "give another --output, or delete this one, which has no answers yet")
