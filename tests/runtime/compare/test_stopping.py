"""Control tokens and endings of a comparison: by hand, and against transformers on documents with reasoning."""

import io
import json
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from calib_data.sources import open_documents
from runtime.compare.gate import Gates
from runtime.compare.report.page import render
from runtime.compare.report.screen import print_comparison
from runtime.compare.result import Difference, DocumentResult, ModelResult
from runtime.compare.stopping.control_tokens import control_ids, control_positions, summarize_control_tokens
from runtime.compare.stopping.endings import compare_endings, in_loop, summarize_endings

from ..damage import change_tensor, edit_json
from ..html_page import Page
from .pages import comparison, measured, pictures, scored
from .references import answer_logits, answer_tokens

THINK_END, TURN_END, CALL = 72, 53, 90
IDS = {"reasoning_end": [THINK_END], "turn_end": [TURN_END, 2], "tool_call": []}


def test_positions_are_those_of_each_kind_that_is_there():
    assert control_positions([7, THINK_END, 7, CALL, TURN_END], IDS) == {"reasoning_end": [1], "turn_end": [4]}
    assert control_positions([7, 2], IDS) == {"turn_end": [1]}
    assert control_positions([THINK_END, 7, TURN_END], IDS | {"reasoning_end": []}) == {"turn_end": [2]}


def test_token_ids_are_the_checkpoints_own(reader, copied):
    assert control_ids(reader) == {"reasoning_end": [THINK_END], "turn_end": [TURN_END], "tool_call": []}
    path = copied / "tokenizer.json"
    path.write_text(path.read_text().replace("</think>", "<|closed|>").replace("<|reserved_79|>", "<tool_call>"))
    edit_json(copied / "generation_config.json", eos_token_id=[53, 2])
    found = control_ids(type(reader)(copied, "cpu"))
    assert found == {"reasoning_end": [], "turn_end": [53, 2], "tool_call": [79]}


def result(control, probabilities, ranks, kl):
    """One document of a baseline and a candidate. probabilities, ranks: of both; None where unknown."""
    models = [
        ModelResult(None, [None if p is None else float(np.log(p)) for p in own], list(rank))
        for own, rank in zip(probabilities, ranks, strict=True)
    ]
    difference = Difference(kl, [True] * len(kl), None)
    return DocumentResult("one", "Read.", "x", control, models[0], models[1:], [difference])


def test_numbers_of_control_tokens_by_hand():
    """Documents weigh by their positions; a token that a reference does not know is left out for both models."""
    documents = [
        result({"turn_end": [1]}, [(0.1, 0.8), (0.1, 0.4)], [(9, 1), (9, 3)], [5.0, 0.1]),
        result({"turn_end": [0, 2]}, [(0.5, 0.1, 0.7), (0.4, 0.1, 0.7)], [(2, 9, 1), (2, 9, 1)], [0.2, 5.0, 0.3]),
        result({"turn_end": [0]}, [(None,), (0.9,)], [(None,), (1,)], [7.0]),
        result({}, [(0.1,), (0.1,)], [(9,), (9,)], [5.0]),
    ]
    (found,) = summarize_control_tokens(documents, 0)
    assert (found.kind, found.positions) == ("turn_end", 3)
    assert found.kl.value == pytest.approx(0.2)
    assert found.kl.low < found.kl.value < found.kl.high
    assert (found.baseline_probability, found.probability) == pytest.approx((2 / 3, 0.5))
    assert found.probability_change.value == pytest.approx(-0.5 / 3)
    assert (found.baseline_rank, found.rank, found.rank_change.value) == pytest.approx((4 / 3, 2, 2 / 3))
    assert summarize_control_tokens(documents[2:], 0) == []


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ("", False),
        ("ab", False),
        ("ababab", True),
        ("xyababab", True),
        ("abababx", False),
        ("ababa", False),
        ("aaaaa", False),
        ("aaaaaa", True),
        ("total 12 total 12 total 12 ", True),
        ("al 12 total 12 total 12 total", True),  # cut within the phrase
        ("total 12 total 13 total 12 ", False),
    ],
)
def test_a_loop_is_a_phrase_three_times_at_the_end(ids, loops):
    """As a regular expression says it."""
    assert in_loop([ord(char) for char in ids]) == loops == bool(re.search(r"(..+)\1\1$", ids))


def test_long_answers_are_searched_in_no_time():
    assert in_loop([*range(8000), *range(4000), *range(4000), *range(4000)])
    assert not in_loop([7] * 5 + [8])


def test_endings_by_hand():
    cut = "ab" * 20
    pairs = [
        (scored("1", "x", "abc"), scored("1", "x", "abc")),
        (scored("2", "x", "abc"), scored("2", "x", cut, finished=False)),
        (scored("3", "x", cut, finished=False), scored("3", "x", "abc")),
        (scored("4", "x", ""), scored("4", "x", "abcd")),
    ]
    changes = compare_endings(pairs)
    assert summarize_endings([before for before, _ in pairs]).finished == 0.75
    assert (changes.finished.value, changes.loops.value) == (0, 0)
    assert changes.unfinished.value == pytest.approx(1 / 3)  # of the three that end with the baseline
    assert changes.length_ratio.value == pytest.approx((4 + 41 + 4 + 5) / (4 + 4 + 41 + 1))
    assert compare_endings([]) is summarize_endings([]) is None
    assert compare_endings(pairs[2:3]).unfinished is None
    same = compare_endings([(after, after) for _, after in pairs])
    assert (same.length_ratio, same.unfinished.value) == ((1.0, 1.0, 1.0), 0.0)


def test_the_report_has_a_section_of_its_own():
    documents = [measured(str(n), "abc", "abc", "abc", "ab" * 9) for n in range(3)]
    two = comparison(documents, "w4", "bad", gates=Gates(max_kl=1))
    page = Page(render(two, documents, pictures(documents)))
    (section,) = (one for one in page.root.find("section") if "Control tokens and endings" in one.text)
    rows = {row.find("th")[0].text: [cell.text for cell in row.find("td")] for row in section.find("tr")[1:]}
    assert "End of turn, 3 positions" in rows
    assert [cell[:6] for cell in rows["Probabilityof the true token, mean"]] == ["0.9048", "0.8187", "0.8187"]
    assert [cell[:6] for cell in rows["In a loopshare, less is better"]] == ["0.0000", "0.0000", "1.0000"]
    assert "End of reasoning: not measured, no true answer has one" in section.text
    assert "Tool call: not measured, the tokenizer has no such token." in section.text
    screen = io.StringIO()
    print_comparison(two, Console(file=screen, width=200))
    (lines,) = re.findall(r"\nControl tokens and endings\n(.*)", screen.getvalue(), re.DOTALL)
    assert "bad: answers: 1.0000 end by themselves, +0.0000 (+0.0000 to +0.0000); 1.0000 in a loop, +1.0000" in lines
    assert "w4: end of turn, 3 positions: KL 0.00100 (0.00100–0.00100); probability 0.8187, -0.0861" in lines
    assert "Tool call: not measured" in lines


def test_documents_with_reasoning_against_transformers(command, exported, tmp_path):
    """KL, probability and rank at `</think>` and the end of the turn; the answer after it is scored."""
    models = "--baseline", exported("fp16"), "--model", exported("w4")
    arguments = (
        "--kind",
        "reasoning",
        "--count",
        6,
        "--seed",
        2,
        "--junit",
        tmp_path / "gates.xml",
        "--max-drop-anls",
        1,
        "--json",
    )
    code, out, err = command("compare", *models, *arguments)
    assert code == 0, err
    compared = json.loads(out)
    documents = open_documents(split="evaluation", count=6, seed=2, kind="reasoning")
    log_p, log_q = (
        [part.double().log_softmax(-1) for part in answer_logits(exported(n), documents)] for n in ("fp16", "w4")
    )
    (candidate,) = compared["candidates"]
    reasoning, turn = candidate["control_tokens"]
    assert [(one["kind"], one["positions"]) for one in (reasoning, turn)] == [("reasoning_end", 6), ("turn_end", 6)]
    for found, token in ((reasoning, THINK_END), (turn, TURN_END)):
        rows = [answer_tokens(document).index(token) for document in documents]
        p, q = (torch.stack([part[row] for part, row in zip(parts, rows, strict=True)]) for parts in (log_p, log_q))
        kl = (p.exp() * (p - q)).sum(-1).mean().item()
        assert found["kl"]["value"] == pytest.approx(kl, rel=1e-2, abs=1e-7)
        assert found["baseline_probability"] == pytest.approx(p[:, token].exp().mean().item(), abs=1e-5)
        assert found["probability"] == pytest.approx(q[:, token].exp().mean().item(), abs=1e-5)
        assert found["rank"] == (q > q[:, [token]]).sum(-1).double().mean().item() + 1
    assert compared["baseline"]["scores"]["anls"] > 0.8
    assert compared["baseline"]["endings"]["finished"] == 1
    assert candidate["ending_changes"]["unfinished"]["value"] == 0
    assert 'name="--max-unfinished"' in (tmp_path / "gates.xml").read_text()


def test_a_model_that_never_stops_fails_the_gate(command, exported, copied):
    """The row of the end token is turned round in its head; what it reads is the same until there."""
    change_tensor(
        copied, "lm_head.weight", lambda head: np.where(np.arange(len(head))[:, None] == TURN_END, -head, head)
    )
    models = "--baseline", exported("fp16"), "--model", copied
    code, out, _ = command("compare", *models, "--count", 2, "--kind", "line", "--max-drop-anls", 1, "--json")
    (candidate,) = json.loads(out)["candidates"]
    assert code == 1
    checks = {check["option"]: (check["value"], check["passed"]) for check in candidate["verdict"]["checks"]}
    assert (checks["--max-unfinished"][1], checks["--max-drop-anls"][1]) == (False, True)
    assert candidate["endings"]["finished"] < 1
    assert candidate["endings"]["tokens"] >= 256
    (turn,) = candidate["control_tokens"]
    assert turn["probability"] < 0.01 < turn["baseline_probability"]
