"""docs/compare.schema.json against what is written, by the jsonschema library."""

import copy
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

from runtime.compare.gate import Gates
from runtime.compare.report.page import render
from runtime.compare.report.screen import print_comparison
from runtime.compare.result import ModelResult

from ...html_page import Page
from ..pages import LAYERS, comparison, measured, pictures

SCHEMA = json.loads((Path(__file__).parents[4] / "docs" / "compare.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)


def errors(content):
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(content)]


def test_the_schema_is_one_and_describes_every_field():
    Draft202012Validator.check_schema(SCHEMA)
    for place in (SCHEMA, *SCHEMA["$defs"].values()):
        for name, field in place["properties"].items():
            assert "description" in field or "$ref" in field or "const" in field, name


def test_command_writes_what_the_schema_says_and_the_page(command, exported, tmp_path):
    folder = tmp_path / "report"
    code, out, _ = command(
        *("compare", "--baseline", exported("fp16"), "--model", exported("w4"), "--model", exported("fp16")),
        *("--count", 3, "--max-drop-anls", 1, "--max-kl", 9, "--output", folder),
    )
    assert code == 0
    assert out.endswith(f"report: {folder / 'report.html'}\n")
    content = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    assert errors(content) == []
    assert [len(content[name]) for name in ("candidates", "documents", "graphs")] == [2, 3, 3]
    assert content["graphs"] == ["float32 activations, float32 KV cache"] * 3
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(f"<h3>{one['name']}</h3>" in page for one in content["documents"])


@pytest.fixture
def content():
    """Of a comparison with a reference, which has no answers, as it is after a round through JSON."""
    documents = [measured(str(n), "abc", None, "abd") for n in range(3)]
    result = comparison(documents, "w4", gates=Gates(max_kl=1), layers=LAYERS[:1])
    return json.loads(json.dumps(result.to_json(documents)))


def test_a_reference_has_nulls_where_answers_would_be(content):
    assert errors(content) == []
    assert content["baseline"]["scores"] is None
    assert content["candidates"][0]["differences"] is None


def test_a_candidate_that_gives_the_truth_no_chance_is_summed_up():
    """1500 nats a token: no float holds their exponential. Every other document is a good one."""
    documents = [measured(str(n), "abc", "abc", "xyz") for n in range(4)]
    for place in (0, 2):
        scored = documents[place].candidates[0].scored
        documents[place] = replace(documents[place], candidates=[ModelResult(scored, [-1500.0] * 4, [9] * 4)])
    result = comparison(documents, "broken")
    content = json.loads(json.dumps(result.to_json(documents), allow_nan=False))
    assert errors(content) == []
    (candidate,) = content["candidates"]
    assert candidate["perplexity"] > 1e300
    assert candidate["perplexity_ratio"]["low"] < 1e-4
    screen = io.StringIO()
    print_comparison(result, Console(file=screen, width=200))
    assert "8.2e+307" in screen.getvalue()
    rows = Page(render(result, documents, pictures(documents))).root.find("tr")
    (cell,) = (row.find("td")[1].text for row in rows if row.find("th")[0].text.startswith("Perplexity"))
    assert len(cell) < 60


def test_the_table_keeps_names_whole_on_80_columns():
    documents = [measured(str(n), "abc", "abc", "abd") for n in range(4)]
    screen = io.StringIO()
    print_comparison(comparison(documents, "reader-nf4"), Console(file=screen, width=80))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines[: lines.index("")])) <= 80
    assert any(line.startswith("reader-nf4 ") for line in lines)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format",), 1),
        (("surprise",), 1),
        (("candidates", 0, "mean_kl"), 0.5),
        (("candidates", 0, "scores", "anls"), 1.5),
        (("candidates", 0, "verdict", "checks", 0, "option"), "--max-drop"),
        (("candidates", 0, "layers", 0, "bits"), "4"),
        (("documents", 0, "candidates", 0, "scored", "answer"), None),
        (("date",), "yesterday"),
    ],
)
def test_the_schema_refuses_anything_else(content, place, value):
    wrong = copy.deepcopy(content)
    inner = wrong
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert len(errors(wrong)) >= 1
