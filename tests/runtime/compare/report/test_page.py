"""report.html: what it says, in which order, and that nothing of it comes from elsewhere."""

import base64
import io
import re
import sys
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from runtime.compare.gate import Gates
from runtime.compare.report.page import WORST, headline, overall_outcome, render, worst, write_report
from runtime.compare.report.plots import mean_kl
from runtime.compare.report.table import short_names
from runtime.compare.result import Difference, Layer

from ...html_page import Page
from ..pages import LAYERS, comparison, measured, pictures

GOOD = [measured(str(n), f"total {n}", f"total {n}", f"total {n}", f"total {(n + 5) % 10}") for n in range(10)]
EVIL = "<script>alert(1)</script> & <b>\"'"


def page(documents, *names, **options):
    return Page(render(comparison(documents, *names, **options), documents, pictures(documents))).root


@pytest.fixture(scope="module")
def two():
    """A candidate that answers as the baseline does, and one whose every answer is wrong by a digit."""
    return page(GOOD, "out/reader-w4", "out/reader-bad", layers=LAYERS, gates=Gates(max_kl=0.01))


def test_verdict_comes_first_and_names_what_fails(two):
    header = two.find("header")[0]
    assert [one.tag for one in two.find("body")[0].inside if one.tag in ("header", "main")] == ["header", "main"]
    assert header.find("h1")[0].text.split(maxsplit=1) == ["✗", "reader-bad fails, the other passes"]
    drop = 1 / len("total 0")  # one letter of seven
    assert header.find("p", "fail")[0].text == f"reader-bad: ANLS drop {drop:.5f}, --max-drop-anls 0.02: FAILS"
    order = [one.text for one in two.find("h2")]
    assert order[2:] == [
        "What was compared",
        "Scores",
        "Control tokens and endings",
        "Where they differ",
        "Worst documents",
    ]


def test_every_candidate_has_its_verdict_checks_and_findings(two):
    cards = two.find("article", "card")
    assert [card.find("span", "name")[0].text for card in cards] == ["reader-w4", "reader-bad"]
    assert [card.find("span", "badge")[0].text for card in cards] == ["passes", "fails"]
    lines = [one.text for one in cards[1].find("ul", "checks")[0].find("li")]
    assert lines == [
        "ANLS drop 0.14286, --max-drop-anls 0.02: FAILS",
        "unfinished answers 0.00000, --max-unfinished 0.02: passes",
        "mean KL 0.00100, --max-kl 0.01: passes",
    ]
    assert any("significant loss" in one.text for one in cards[1].find("ul", "findings")[0].find("li"))


def test_table_has_every_number(two):
    rows = {row.find("th")[0].text: [cell.text for cell in row.find("td")] for row in two.find("tr")}
    anls = rows["ANLSmore is better"]
    assert anls[0] == "1.0000"
    assert anls[1] == "1.0000+0.0000 (+0.0000 to +0.0000)within noise"
    assert anls[2] == "0.8571−0.1429 (−0.1429 to −0.1429)▼ significant loss"
    assert rows["Exact matchmore is better"][2].startswith("0.0000−1.0000")
    assert rows["Answers changedof 10"] == ["–", "0", "10from token 7 on (median)"]
    assert rows["KL divergencenats per token"][1] == "0.001000.00100 to 0.00100"
    assert rows["Perplexityof the true answers"] == ["1.1052", *["1.2214× 1.1052 (1.1052 to 1.1052)"] * 2]
    assert rows["WeightsMiB"] == ["4.0"] * 3
    assert rows["Speedtokens per second, image included"] == ["14"] * 3  # 7 tokens in half a second


def test_what_was_compared_is_said(two):
    about = two.find("dl", "about")[0].text
    for part in ("out/reader-w4", "out/reader-bad", "10 of the evaluation split of rendered, seed 0", "2026-01-02"):
        assert part in about
    assert "onnxruntime 1.31.1" in about


def test_nothing_comes_from_elsewhere():
    html = render(comparison(GOOD, "a", "b"), GOOD, pictures(GOOD))
    root = Page(html).root
    assert not root.find("script") + root.find("iframe") + root.find("object")
    links = [v for one in root.inside for k, v in one.attributes.items() if k in ("src", "href", "srcset", "action")]
    assert {link.partition(":")[0] if ":" in link else link[0] for link in links} == {"data", "#"}
    assert set(re.findall(r"url\([\"']?(.)", html)) == {"#"}
    assert "@import" not in html
    policy = next(one for one in root.find("meta") if one.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_ids_are_unique_and_every_reference_has_its_element(two):
    ids = [one.attributes["id"] for one in two.inside if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    links = [one.attributes["href"] for one in two.inside if one.attributes.get("href", "").startswith("#")]
    assert links
    assert {link[1:] for link in links} <= set(ids)


def test_changes_are_marked():
    documents = [
        measured("receipt", "1,000원\n감사합니다", "1,000원\n감사합니다", "1,000\n감사합니다!"),
        measured("bill", "SUM 12", "SUM 13", "SUM 13", prompt="합계는?"),
    ]
    receipt, bill = page(documents, "w4").find("article", "document")
    assert [one.text for one in receipt.find("del")] == ["원"]
    assert [one.text for one in receipt.find("ins")] == ["!"]
    assert [one.text for one in receipt.find("dd", "same")] == ["same as the truth"]
    assert ([one.text for one in bill.find("del")], [one.text for one in bill.find("ins")]) == (["2"], ["3"])
    assert [one.text for one in bill.find("dd", "same")] == ["same as the baseline"]
    assert "합계는?" in bill.text


def test_what_scores_do_not_count_is_no_difference_from_the_truth():
    truth = unicodedata.normalize("NFD", "합계 café\n감사합니다").replace("\n", "\r\n").replace(" ", "\xa0")
    answer = "합계 café\n감사합니다"
    (document,) = page([measured("x", truth, answer, answer)], "w4").find("article", "document")
    assert document.find("del") + document.find("ins") == []
    assert [one.text for one in document.find("dd", "same")] == ["same as the truth", "same as the baseline"]
    (document,) = page([measured("x", truth, None, answer)], "w4").find("article", "document")
    assert document.find("del") + document.find("ins") == []
    assert [one.text for one in document.find("dd", "same")] == ["not available", "same as the truth"]


def test_a_line_break_that_changed_is_seen():
    documents = [measured("x", "a\nb", "a\nb", "ab")]
    marks = page(documents, "w4").find("article", "document")[0]
    assert "⏎" in "".join(one.text for one in marks.find("del"))


def test_text_stays_text():
    documents = [measured(EVIL, EVIL, EVIL, EVIL + EVIL, prompt=EVIL)]
    root = page(documents, EVIL, baseline="$x_1$ " + EVIL)
    assert not root.find("script") + root.find("b")
    document = root.find("article", "document")[0]
    assert document.find("h3")[0].text == EVIL
    assert document.find("ins")[0].text == EVIL
    assert "&amp;amp;" not in render(comparison(documents, EVIL), documents, pictures(documents))


def test_names_of_any_script_are_in_the_plots_as_they_are():
    """A dollar is no formula, and what the measuring font lacks is no warning."""
    svg = page(GOOD, "$w_4$", "모델<1>").find("svg")
    assert all("$w_4$" in one.text and "모델<1>" in one.text for one in svg)


def test_the_same_comparison_gives_the_same_bytes(tmp_path):
    files = []
    for name in "ab":
        (tmp_path / name).mkdir()
        files.append(write_report(comparison(GOOD, "w4", "bad"), GOOD, pictures(GOOD), tmp_path / name))
    assert files[0].name == "report.html"
    assert files[0].read_bytes() == files[1].read_bytes()


def test_pictures_are_made_small():
    uri = page(GOOD, "w4", "bad").find("img")[0].attributes
    picture = Image.open(io.BytesIO(base64.b64decode(uri["src"].removeprefix("data:image/jpeg;base64,"))))
    assert (picture.format, picture.size) == ("JPEG", (900, 225))
    assert (uri["width"], uri["height"]) == ("900", "225")


def test_worst_documents_are_the_farthest_and_those_that_changed():
    documents = [measured(str(n), "abc", "abc", "abc", kl=[(n * 7 % 30) / 100]) for n in range(30)]
    farthest = sorted(range(30), key=lambda n: -(n * 7 % 30))
    assert worst(documents) == farthest[:WORST]
    for place in farthest[-6:]:
        documents[place] = measured(str(place), "abc", "abc", "abd", kl=documents[place].differences[0].kl[:1])
    assert worst(documents) == farthest[:WORST] + farthest[-6:-2]


def test_a_bad_candidate_does_not_hide_the_worst_of_another():
    documents = [measured(str(n), "abc", "abc", "abc", "abc", kl=[n / 100, (20 - n) * 1.0]) for n in range(20)]
    assert set(worst(documents)) == {19, 18, 17, 16, 0, 1, 2, 3}


def test_suspects_are_named_in_plot_and_caption():
    """All of them in the caption; in the plot the worst, and how many others."""
    odd = Layer("model.layers.3.mlp.up_proj", 4, 1.414, None, None, suspect=True)
    other = Layer("model.layers.4.mlp.up_proj", 4, 0.9, None, None, suspect=True)
    root = page(GOOD, "w4", "bad", layers=[*LAYERS, odd, other])
    figure = next(one for one in root.find("figure") if one.find("h3")[0].text == "Error by layer")
    assert figure.find("svg")[0].text.count("layers.3.mlp.up_proj +1") == 2
    suspects = "model.layers.3.mlp.up_proj (1.414), model.layers.4.mlp.up_proj (0.900)"
    assert f"w4, far above other layers of the same bit width: {suspects}" in figure.text
    assert "layers.1.mlp" not in figure.text


def test_a_reference_has_no_answers_and_the_page_says_so():
    documents = [measured(str(n), "abc", None, "abd") for n in range(3)]
    layers = [Layer("model.layers.0.mlp.up_proj", 4, None, 0.001, 0.003, suspect=False)]
    result = comparison(documents, "w4", baseline="w4/reference.npz", layers=layers)
    root = Page(render(result, documents, pictures(documents))).root
    assert root.find("h1")[0].text == "? Not judged: no gate could be checked"
    assert [one.text for one in root.find("span", "badge")] == ["not judged"]
    assert "differences of scores are not available" in root.find("header")[0].text
    figures = {one.find("h3")[0].text: one for one in root.find("figure")}
    assert not figures["Score differences"].find("svg")
    assert "Not available" in figures["Score differences"].find("figcaption")[0].text
    assert "that quantize reported" in figures["Error by layer"].find("figcaption")[0].text
    document = root.find("article", "document")[0]
    assert [one.text for one in document.find("dd", "same")] == ["not available"]
    assert ([one.text for one in document.find("del")], [one.text for one in document.find("ins")]) == (["c"], ["d"])


def test_a_weak_baseline_is_said_first_and_once():
    documents = [measured(str(n), "a long receipt", "xyz", "xyz", "xyz") for n in range(3)]
    result = comparison(documents, "w4", "nf4")
    html = render(result, documents, pictures(documents))
    header = Page(html).root.find("header")[0]
    assert header.find("h1")[0].text == "? Not judged: the baseline is too weak"
    assert "too weak to judge by: its ANLS on these documents is 0.000, below 0.5" in header.text
    assert html.count("too weak to judge by") == 1
    assert {one.text for one in Page(html).root.find("span", "badge")} == {"not judged"}
    # KL tells models apart on such documents too.
    assert headline(["w4", "nf4"], comparison(documents, "w4", "nf4", gates=Gates(max_kl=1))) == "Both candidates pass"


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [((), "All 3 candidates pass"), ((1,), "m1 fails, the other 2 pass"), ((0, 2), "2 of 3 candidates fail")],
)
def test_headlines(wrong, expected):
    answers = ["no" if number in wrong else "abcdef" for number in range(3)]
    documents = [measured("x", "abcdef", "abcdef", *answers)]
    result = comparison(documents, "m0", "m1", "m2")
    assert headline(["m0", "m1", "m2"], result) == expected
    assert overall_outcome(result) == ("fail" if wrong else "pass")


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["fails", "not judged"], "m0 fails, the other was not judged"),
        (["fails", "not judged", "not judged"], "m0 fails, the other 2 were not judged"),
        (["passes", "fails", "not judged"], "m1 fails, the others were not all judged"),
    ],
)
def test_headlines_say_passes_only_of_what_was_judged(outcomes, expected):
    names = [f"m{number}" for number in range(len(outcomes))]
    documents = [measured("x", "abcdef", "abcdef", *names)]
    result, passed = comparison(documents, *names), {"passes": True, "fails": False, "not judged": None}
    candidates = []
    for one, outcome in zip(result.candidates, outcomes, strict=True):
        check = replace(one.verdict.checks[0], passed=passed[outcome])
        verdict = replace(one.verdict, passed=outcome == "passes", checks=[check])
        candidates.append(replace(one, verdict=verdict))
    assert headline(names, replace(result, candidates=candidates)) == expected


def test_names_are_short_where_that_tells_models_apart():
    assert short_names(["a/fp16", "b/w4"]) == ["fp16", "w4"]
    assert short_names(["a/w4", "b/w4"]) == ["a/w4", "b/w4"]


def test_without_matplotlib_one_line_names_the_extra_before_any_work(command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = command("compare", "--baseline", "nowhere", "--output", tmp_path / "report")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "install the extra 'report'" in err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(("longest", "width"), [(5, 1), (32, 1), (70, 3)])
def test_kl_by_position_is_the_mean_of_all_tokens_of_a_run(longest, width):
    rng = np.random.default_rng(0)
    kl = [rng.exponential(size=length).tolist() for length in (longest, longest // 2, 1)]
    documents = [replace(GOOD[0], differences=[Difference(one, [True] * len(one), None)]) for one in kl]
    places, means = mean_kl(documents, 0)
    for start, place, mean in zip(range(0, longest, width), places, means, strict=True):
        run = range(start, start + width)
        assert place == np.mean(run) + 1
        assert mean == pytest.approx(np.mean([one[at] for one in kl for at in run if at < len(one)]))
