"""Counts of a run, against pandas over the same rows."""

from itertools import groupby, pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console

from console.errors import InputError
from runtime.batch.output.columns import BASE
from runtime.batch.output.screen import print_summary
from runtime.batch.output.shards import ShardFiles
from runtime.batch.output.summary import ErrorKind, Summary, summarize
from runtime.batch.plan import Planned
from runtime.batch.storage import Storage

FIELDS = {"total": pa.float64(), "seller": pa.string(), "items": pa.list_(pa.string()), "paid": pa.bool_()}
KINDS = ("cannot be read", "has no pages", "prompt: 300 tokens")


def schema():
    columns = BASE
    for name, kind in FIELDS.items():
        columns = columns.append(pa.field(name, kind))
    return columns


def planned(*rows):
    """Shards with so many rows."""
    return [Planned(number, 0, count, 0, 0) for number, count in enumerate(rows)]


def random_rows(seed, count):
    """Rows of documents of one to five pages, a fifth of them with an error."""
    random = np.random.default_rng(seed)
    rows = []
    while len(rows) < count:
        document, pages = f"scans/{len(rows)}.pdf", int(random.integers(1, 6))
        rows += [random_row(random, len(rows) + page, document, page + 1) for page in range(pages)]
    return rows[:count]


def random_row(random, number, document, page):
    row = dict.fromkeys(schema().names)
    row |= {"row": number, "document": document, "page": page, "prompt": "?", "attempts": int(random.integers(1, 4))}
    if random.random() < 0.2:
        kind, place = KINDS[random.integers(3)], f"{document}: page {page}: "
        return row | {"error": (place if random.random() < 0.5 else "") + kind}
    values = {"total": [None, 0.0, 12.5], "seller": [None, "", "가"], "items": [None, [], ["a"]], "paid": [None, False]}
    row |= {name: some[random.integers(len(some))] for name, some in values.items()}
    counts = {name: int(random.integers(1, 999)) for name in ("prompt_tokens", "tokens", "milliseconds")}
    return row | counts | {"answer": "{}", "finish": ["end", "length"][random.integers(2)]}


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_pandas(seed, form, tmp_path):
    rows = random_rows(seed, 150)
    files = ShardFiles(Storage.at(tmp_path), schema(), form)
    files.storage.make_folder("pages")
    bounds = [0, 1, 64, 110, 150]
    for number, (first, end) in enumerate(pairwise(bounds)):
        files.write(number, rows[first:end])
    found, table = summarize(files, planned(1, 63, 46, 40), list(FIELDS)), pd.DataFrame(rows)
    assert found.pages == 150
    assert found.documents == table["document"].nunique()
    assert found.answered == table["error"].isna().sum()
    assert found.truncated == (table["finish"] == "length").sum()
    assert found.retried == (table["attempts"] > 1).sum()
    assert found.prompt_tokens == table["prompt_tokens"].sum()
    assert found.tokens == table["tokens"].sum()
    assert found.milliseconds == table["milliseconds"].sum()
    assert found.filled == {
        "total": table["total"].notna().sum(),
        "seller": (table["seller"].fillna("") != "").sum(),
        "items": table["items"].map(bool).sum(),
        "paid": table["paid"].notna().sum(),
    }
    failed = [row for row in rows if row["error"]]
    for kind in found.errors:
        same = [row for row in failed if row["error"].endswith(kind.message)]
        assert kind.pages == len(same)
        assert kind.example == f"{same[0]['document']}, page {same[0]['page']}"
    assert {kind.message for kind in found.errors} == set(KINDS)
    assert [kind.pages for kind in found.errors] == sorted((kind.pages for kind in found.errors), reverse=True)


def test_documents_with_the_same_name_one_after_another_are_one(tmp_path):
    names = [*"aab", *"bcca", "a"]
    rows = [dict.fromkeys(BASE.names) | {"row": row, "document": name} for row, name in enumerate(names)]
    files = ShardFiles(Storage.at(tmp_path), BASE, "jsonl")
    files.storage.make_folder("pages")
    for number in range(2):
        files.write(number, [row | {"attempts": 1} for row in rows[4 * number : 4 * number + 4]])
    assert summarize(files, planned(4, 4), []).documents == len(list(groupby(names)))


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_file_with_other_rows_is_damaged(form, tmp_path):
    """Cut after a line, or a copy of another one: each page is there once, or the run has not ended well."""
    rows = random_rows(0, 6)
    files = ShardFiles(Storage.at(tmp_path), schema(), form)
    files.storage.make_folder("pages")
    files.write(0, rows[:3])
    for wrong in (rows[3:5], rows[:3], rows[5:2:-1], rows[3:] + rows[5:], []):
        files.write(1, wrong)
        with pytest.raises(InputError) as caught:
            summarize(files, planned(3, 3), [])
        says = "is damaged (it must have the rows 3 to 5); delete it, and run the same command again"
        assert str(caught.value) == f"{tmp_path}/pages/000001.{form}: {says}"
    files.write(1, rows[3:])
    assert summarize(files, planned(3, 3), []).pages == 6


ERRORS = {
    "scans/a.pdf: page 3: cannot be drawn": ("cannot be drawn", "a.pdf, page 3"),
    "/data/scans/a.pdf: page 3 cannot be drawn": ("cannot be drawn", "a.pdf, page 3"),
    "the answer is not JSON": ("the answer is not JSON", "a.pdf, page 3"),
    "ba.pdf: cannot be drawn": ("ba.pdf: cannot be drawn", "a.pdf, page 3"),
    "page 30: cannot be drawn": ("page 30: cannot be drawn", "a.pdf, page 3"),
    "field 'total': \"12,50\" is no number": ("field 'total': \"12,50\" is no number", "a.pdf, page 3"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_counted_without_its_place(error, tmp_path):
    message, example = ERRORS[error]
    row = dict.fromkeys(BASE.names) | {"row": 0, "document": "a.pdf", "page": 3, "prompt": "?", "attempts": 1}
    files = ShardFiles(Storage.at(tmp_path), BASE, "parquet")
    files.storage.make_folder("pages")
    files.write(0, [row | {"row": number, "error": error} for number in range(3)])
    assert summarize(files, planned(3), []).errors == [ErrorKind(message, 3, example, 0, 0)]


def errors_of(folder, errors):
    """The summary of a run with these errors, one a row."""
    row = dict.fromkeys(BASE.names) | {"prompt": "?", "attempts": 1}
    files = ShardFiles(Storage.at(folder), BASE, "jsonl")
    files.storage.make_folder("pages")
    files.write(0, [row | {"row": n, "document": f"{n}.png", "error": error} for n, error in enumerate(errors)])
    return summarize(files, planned(len(errors)), [])


SAME = {
    "numbers": "prompt: {n} tokens and 512 of the answer need --max-context {more}",
    "a line": "line {n} is not valid",
    "a row": "row {n} is not valid",
    "a page's name": "scan-{n}.png: is damaged at {more}",
    "a value": "field 'total': \"{word}\" is no number",
    "a value with quotes": r"""field 'total': "{word}\" {word}" is no number""",
    "the number of a value": "field 'total': {n}.{more} is no integer",
}


@pytest.mark.parametrize("case", SAME)
def test_errors_that_differ_in_numbers_or_values_are_one_kind_shown_by_the_first(case, tmp_path):
    errors = [SAME[case].format(n=7 * n, more=n**3, word="xy" * n) for n in range(1, 30)]
    other = "cannot be read"
    found = errors_of(tmp_path, [errors[0], other, *errors[1:]])
    assert found.errors == [ErrorKind(errors[0], 29, "0.png", 0, 0), ErrorKind(other, 1, "1.png", 1, 0)]


def test_errors_that_differ_in_words_are_several_kinds(tmp_path):
    """Also late in long texts."""
    errors = ["field 'a': 1 is no list", "field 'b': 1 is no list", "x" * 200 + "a", "x" * 200 + "b"]
    assert [kind.message for kind in errors_of(tmp_path, errors).errors] == errors


def word(number):
    """A word of its own for each number, without digits."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def test_an_error_that_comes_after_a_thousand_kinds_is_listed(tmp_path):
    """As in a long run whose disk is lost late. Memory does not grow with the kinds."""
    early, late = [f"{word(number)} is damaged" for number in range(1500)], "the disk is lost"
    found = errors_of(tmp_path, early + [late] * 300)
    assert (found.pages, found.answered) == (1800, 0)
    assert found.errors_missed == 1
    assert found.errors[0] == ErrorKind(late, 300, "1500.png", 1500, 0)


def test_counts_of_many_kinds_are_too_small_by_what_is_said(tmp_path):
    random = np.random.default_rng(0)
    errors = [*(f"{word(number)} is damaged" for number in range(4000)), *["lost"] * 90, *["no fonts"] * 40]
    random.shuffle(errors)
    found = errors_of(tmp_path, errors)
    assert 0 < found.errors_missed <= len(errors) / 1000
    assert [kind.message for kind in found.errors[:2]] == ["lost", "no fonts"]
    for kind, pages in zip(found.errors, (90, 40), strict=False):
        assert pages - found.errors_missed <= kind.pages <= pages
        assert errors[kind.row] == kind.message
        assert kind.example == f"{kind.row}.png"
    assert len(found.errors) <= 20


def test_twenty_kinds_of_errors_are_listed(tmp_path):
    found = errors_of(tmp_path, [word(number) for number in range(30)])
    assert [kind.message for kind in found.errors] == [word(number) for number in range(20)]
    assert found.errors_missed == 0


def test_what_is_printed(tmp_path, capsys):
    rows = random_rows(0, 40)
    files = ShardFiles(Storage.at(tmp_path), schema(), "parquet")
    files.storage.make_folder("pages")
    files.write(0, rows)
    summary = summarize(files, planned(40), list(FIELDS))
    print_summary(summary, Console(markup=False, width=100))
    out = capsys.readouterr().out
    assert f"40 rows of {summary.documents} documents" in out
    filled = summary.filled["total"]
    said = [" ".join(line.replace("│", " ").split()) for line in out.splitlines()]
    assert f"answered {summary.answered}" in said
    assert f"with an error {40 - summary.answered}" in said
    assert f"truncated at --max-new-tokens {sum(one['finish'] == 'length' for one in rows)}" in said
    assert f"retried {sum(one['attempts'] > 1 for one in rows)}" in said
    assert f"field total {filled} filled, {filled / 40:.1%}" in said
    first = summary.errors[0]
    assert f"{first.pages} x {first.message} ({first.example})" in said


def test_a_count_of_errors_that_may_be_too_small_says_so(capsys):
    summary = Summary(pages=9, errors=[ErrorKind("lost", 3, "a.pdf", 0, 0)], errors_missed=1)
    print_summary(summary, Console(markup=False, width=100))
    assert "≥ 3 x lost (a.pdf)" in capsys.readouterr().out
