"""The page of `--report`: its numbers against counts over the rows, and that nothing of it comes from elsewhere."""

import re
from collections import Counter
from datetime import date
from importlib.metadata import version
from statistics import median_low

import pytest

from runtime.batch.job import Job
from runtime.batch.output.report.figures import percent, short_count
from runtime.batch.plan import read_plan, write_plan
from runtime.batch.source.open import open_source
from runtime.batch.storage import Storage
from runtime.batch.workers.worker import Worker

from ...commands import assert_one_line
from ...html_page import Page
from .reported import PAGES, SCHEMA, answered, job, random_rows, row, written

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module", params=["parquet", "jsonl"])
def invoices(request, tmp_path_factory):
    """Rows of a run with a schema, and the page of its report."""
    folder = tmp_path_factory.mktemp("invoices")
    one = job(folder, SCHEMA, request.param)
    rows = random_rows(one)
    return rows, Page(written(one, rows, folder / "report.html")).root


def shown(number):
    return f"{number:,}"


def test_counts_are_those_of_the_rows(invoices):
    rows, page = invoices
    tiles = {tile.find("dt")[0].text: [one.text for one in tile.find("dd")] for tile in page.find("div", "card")}
    errors = sum(one["error"] is not None for one in rows)
    truncated = sum(one["finish"] == "length" for one in rows)
    tokens = [one["tokens"] for one in rows if one["tokens"] is not None]
    assert errors > 5
    assert truncated > 0
    assert tiles == {
        "pages": ["200"],
        "documents": ["67"],
        "answered": [shown(PAGES - errors), f"{(PAGES - errors) / 2:.1f} %"],
        "with an error": [shown(errors), f"{errors / 2:.1f} %"],
        "truncated": [shown(truncated), f"{truncated / 2:.1f} %"],
        "retried": [shown(n := sum(one["attempts"] > 1 for one in rows)), f"{n / 2:.1f} %"],
        "answer tokens": [shown(sum(tokens)), f"{sum(tokens) / len(tokens):.1f} per answer"],
        "prompt tokens": [shown(30 * len(tokens)), "30.0 per prompt"],
    }
    assert page.find("h1")[0].text.split(maxsplit=1) == ["!", f"{errors} of 200 pages have an error"]
    assert f"{truncated} answers are truncated at --max-new-tokens" in page.find("header")[0].text


def test_errors_are_counted_without_their_place(invoices):
    rows, page = invoices
    places = [(re.sub(r"^\d+\.pdf: (page \d )?", "", one["error"]), one) for one in rows if one["error"]]
    lines = page.find("ol", "errors")[0].find("li")
    found = {line.find("p")[0].text: int(line.find("b")[0].text) for line in lines}
    assert found == Counter(message for message, _ in places)
    for line in lines:
        message, note = (one.text for one in line.find("p"))
        first = next(one for text, one in places if text == message)
        assert f"{first['document']}, page {first['page']}, in pages/{first['row'] // 64:06}." in note


def test_fields_have_fill_rates_and_what_fills_them(invoices):
    rows, page = invoices
    cards = {card.find("span", "name")[0].text: card for card in page.find("article", "field")}
    assert list(cards) == list(SCHEMA["properties"])
    for name, card in cards.items():
        values = [one[name] for one in rows if one[name] not in (None, "", [])]
        share = {0: "0", PAGES: "100"}.get(len(values), f"{len(values) / 2:.1f}")
        assert card.find("b")[0].text == f"{share} %"
        assert card.find("p", "note")[0].text.startswith(f"{len(values)} filled")
        assert f"width: {len(values) / 2:.2f}%" in [one.attributes.get("style") for one in card.find("span")]
        if name in ("seller", "paid"):
            counts = Counter({True: "true", False: "false"}.get(one, str(one))[:80] for one in values)
            lines = [[one.text for one in line.find("span")[:2]] for line in card.find("li")]
            assert [int(count) for _, count in lines] == sorted(counts.values(), reverse=True)
            assert {text.rstrip("…")[:79]: int(count) for text, count in lines} == {
                text[:79]: count for text, count in counts.items()
            }
        if name in ("total", "items"):
            numbers = [one.text for one in card.find("dd")]
            assert numbers == [f"{one:,}" for one in (min(values), median_low(values), max(values))]
    assert "all different" in cards["number"].text
    assert [one.text for one in cards["number"].find("li")] == [
        one["number"] for one in rows if one["number"] is not None
    ][:4]
    assert not cards["never"].find("li")


@pytest.mark.parametrize("name", ["tokens", "milliseconds"])
def test_bars_hold_the_answers(invoices, name):
    rows, page = invoices
    values = [one[name] for one in rows if one[name] is not None]
    (figure,) = (one for one in page.find("figure") if one.find("h3")[0].text.lower().startswith(name))
    bars = [one.text.replace(",", "") for one in figure.find("span", "hidden")]
    counts = []
    for bar in bars:
        start, end, count = re.fullmatch(rf"(\d+) (?:or more|to less than (\d+)) {name}: (\d+)", bar).groups()
        assert int(count) == sum(int(start) <= value < int(end or 2**31) for value in values)
        counts.append(int(count))
    assert sum(counts) == len(values)
    heights = [float(one.attributes["style"].partition(": ")[2]) for one in figure.find("li")]
    assert heights == pytest.approx([count / max(counts) for count in counts], abs=1e-8)
    says = f"{min(values):,} to {max(values):,} {name}; median {median_low(values):,}, 95th percentile "
    assert says in figure.find("figcaption")[0].text


def test_what_was_run_is_said(invoices):
    about = invoices[1].find("dl", "about")[0]
    pairs = zip((one.text for one in about.find("dt")), (one.text for one in about.find("dd")), strict=True)
    assert dict(pairs) == {
        "Model": "/models/reader-w4",
        "Input": "/data/scans",
        "Prompt": "What is the total?",
        "Answers": "JSON with seller, number, total, items, paid, lines, never",
        "A row is": "a page, in the order of the input; files of a folder are sorted by name",
        "Options": "--max-new-tokens 64, --temperature 0.0",
        "Report": f"{date.today()}, exaone-docvlm {version('exaone-docvlm')}",
    }


def test_rows_of_all_parts_are_shown_and_the_first_of_each_error(invoices):
    rows, page = invoices
    titles = [one.find("b")[0].text for one in page.find("article", "document")]
    wanted = [rows[place] for place in (0, 1, 51, 102, 153, 193, 198, 199)]  # of 4 files, the last of 8 rows
    messages = [re.sub(r"^\d+\.pdf: (page \d )?", "", one["error"] or "") for one in rows]
    for message, _ in Counter(filter(None, messages)).most_common():
        wanted.append(rows[messages.index(message)])
    expected = list(dict.fromkeys(f"{one['document']}, page {one['page']}" for one in wanted))
    assert titles == expected
    assert len(titles) > 4


def test_texts_are_escaped_and_nothing_comes_from_elsewhere(tmp_path):
    one = job(tmp_path, {"type": "object", "properties": {EVIL: {"type": "string"}}}, prompt=f"{EVIL} & what?")
    error = row(1, one, document=EVIL, error=f'{EVIL}: <img src="http://127.0.0.1/x.png">')
    html = written(
        one, [answered(0, one, EVIL, reasoning=EVIL, document=EVIL, **{EVIL: EVIL}), error], tmp_path / "r.html"
    )
    page = Page(html).root
    assert not page.find("script") + page.find("img") + page.find("iframe")
    assert page.find("article", "document")[0].find("b")[0].text == f"{EVIL}, page 1"
    assert [one.text for one in page.find("article", "document")[0].find("dd", "text")] == [EVIL, EVIL]
    assert page.find("article", "field")[0].find("span", "value")[0].text == EVIL
    assert f"{EVIL} & what?" in page.find("dl", "about")[0].text
    links = [v for one in page.inside for k, v in one.attributes.items() if k in ("src", "href", "srcset", "action")]
    assert links == ["data:,"]
    assert "url(" not in html
    assert "@import" not in html
    (policy,) = (one for one in page.find("meta") if one.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_a_run_without_any_answer_has_its_page(tmp_path):
    one = job(tmp_path, SCHEMA)
    page = Page(written(one, [row(n, one, error="cannot be read") for n in range(3)], tmp_path / "r.html")).root
    assert page.find("h1")[0].text.split(maxsplit=1) == ["✗", "None of 3 pages is answered"]
    assert not page.find("figure")
    assert "0.0 per" not in page.find("dl", "tiles")[0].text
    assert {one.text for one in page.find("p", "filled")} == {" 0 %"}


def test_a_run_without_a_schema_has_no_fields(tmp_path):
    one = job(tmp_path, prompt=None, seed=7, thinking=True)
    page = Page(written(one, [answered(0, one, "")], tmp_path / "r.html")).root
    assert page.find("h1")[0].text == "✓ The page is answered"
    assert [one.text for one in page.find("h2")] == ["What was run", "Samples"]
    assert page.find("dd", "empty")[0].text == "empty"
    about = page.find("dl", "about")[0].text
    assert "Read the text. (by default)" in about
    assert "--max-new-tokens 64, --temperature 0.0, --thinking, --seed 7" in about


def test_a_long_answer_is_cut_by_letters_and_lines(tmp_path):
    one = job(tmp_path)
    texts = ["y" * 1700, "line\n" * 40]
    rows = [answered(number, one, text) for number, text in enumerate(texts)]
    page = Page(written(one, rows, tmp_path / "r.html")).root
    first, last = page.find("article", "document")
    assert first.find("dd", "text")[0].text == "y" * 1000
    assert "700 more letters" in first.text
    assert last.find("dd", "text")[0].text == "\n".join(["line"] * 16)
    assert f"{200 - 79} more letters" in last.text


def test_long_times_are_in_seconds(tmp_path):
    one = job(tmp_path)
    rows = [answered(number, one, milliseconds=12_500 * (number + 1)) for number in range(3)]
    page = Page(written(one, rows, tmp_path / "r.html")).root
    figure = page.find("figure")[1]
    assert figure.find("h3")[0].text == "Seconds per answer"
    assert "12.5 to 37.5 seconds; median 25, 95th percentile 37.5." in figure.text


def test_answers_of_one_length_are_not_a_range(tmp_path):
    one = job(tmp_path, thinking=True)
    page = Page(written(one, [answered(number, one) for number in range(3)], tmp_path / "r.html")).root
    assert [figure.find("figcaption")[0].text for figure in page.find("figure")] == [
        "All have 5 tokens. Reasoning included.",
        "All have 40 milliseconds. From submission to the last token; answers overlap.",
    ]


def test_a_schema_that_is_a_reference_has_its_page(tmp_path):
    node = {"type": "object", "properties": {"value": {"type": "integer"}, "below": {"$ref": "#/$defs/node"}}}
    one = job(tmp_path, {"$defs": {"node": node}, "$ref": "#/$defs/node"})
    page = Page(written(one, [answered(0, one, value=1)], tmp_path / "r.html")).root
    assert [card.find("span", "name")[0].text for card in page.find("article", "field")] == ["value", "below"]
    assert "JSON with value, below" in page.find("dl", "about")[0].text


def test_counts_of_errors_that_may_be_too_small_say_so(tmp_path):
    one = job(tmp_path)
    words = ("".join("abcdefghij"[int(digit)] for digit in str(number)) for number in range(1500))
    errors = [*words, *["the disk is lost"] * 300]
    page = Page(written(one, [row(n, one, error=error) for n, error in enumerate(errors)], tmp_path / "r.html")).root
    assert page.find("ol", "errors")[0].find("b")[0].text == "≥ 300"
    note = next(one.text for one in page.find("p", "note") if "--retry-errors" in one.text)
    assert "; up to 1,481 pages have another one. With ≥, up to 1 more." in note
    assert "Retried" not in page.text


def test_the_same_rows_give_the_same_page(tmp_path):
    one = job(tmp_path, SCHEMA)
    rows = random_rows(one, 70)
    assert written(one, rows, tmp_path / "a.html") == written(one, rows, tmp_path / "b.html")


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 9, "0 %"), (9, 9, "100 %"), (1, 10**6, "< 0.1 %"), (10**6 - 1, 10**6, "> 99.9 %")]
)
def test_a_share_is_none_or_all_only_where_it_is(part, whole, text):
    assert percent(part, whole) == text


@pytest.mark.parametrize(
    ("count", "text"), [(9999, "9999"), (48_123, "48.1k"), (999_499, "999k"), (999_500, "1M"), (1_234_567, "1.23M")]
)
def test_counts_over_bars_are_short(count, text):
    assert short_count(count) == text


def test_a_finished_output_gets_its_report_and_no_new_answers(command, exported, picture, tmp_path):
    """Without Ray, which nothing is left for."""
    model, output = Storage.at(exported("fp16")), Storage.at(tmp_path / "out")
    options = {"max_new_tokens": 40, "temperature": 0.0, **dict.fromkeys(("top_p", "top_k", "presence_penalty"))}
    options |= {"seed": None, "thinking": False, "thinking_budget": None}
    one = Job(model, open_source(Storage.at(picture), "Read the text.", per_document=False), output, None, options)
    for name in ("pages", "unfinished"):
        output.make_folder(name)
    write_plan(output, one.planned(), one.source.parts())
    worker = Worker(one, "run")
    worker.answer(read_plan(output)[1][0])
    worker.close()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "pages").iterdir()}
    arguments = ("batch", "--model", model.url, "--input", picture, "--output", output.url, "--max-new-tokens", 40)
    arguments += ("--temperature", 0, "--prompt", "Read the text.")
    code, out, _ = command(*arguments, "--report", tmp_path / "r.html")
    assert (code, "1 row of 1 document" in out) == (0, True)
    page = Page((tmp_path / "r.html").read_text()).root
    assert page.find("h1")[0].text == "✓ The page is answered"
    assert page.find("dd", "text")[0].text == one.files.read(0)[0]["answer"]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "pages").iterdir()}


def test_a_report_that_could_not_be_written_is_refused_at_once(command, exported, picture, tmp_path):
    arguments = ("batch", "--model", exported("fp16"), "--input", picture, "--output", tmp_path / "out", "--report")
    assert_one_line(command(*arguments, tmp_path / "none" / "r.html"), "--report", "there is no folder", "make it")
    assert_one_line(command(*arguments, tmp_path), f"--report {tmp_path}: is a folder")
    assert not (tmp_path / "out").exists()
