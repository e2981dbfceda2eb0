"""Tool calls come out of an answer's text the same, however the text is cut; what is no call stays text."""

import json
import re
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.serve.chat.tool_calls import Arguments, CallDropped, CallStarted, Content, ToolCallParser


def parse(pieces):
    parser = ToolCallParser()
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish()
    text, calls, dropped = "", {}, set()
    for delta in deltas:
        match delta:
            case Content(piece):
                text += piece
            case CallStarted(index, identifier, name):
                assert index == len(calls)
                assert re.fullmatch(r"call_\w{20,}", identifier)
                calls[index] = [name, ""]
            case Arguments(index, piece):
                assert index == len(calls) - 1
                calls[index][1] += piece
            case CallDropped(index):
                dropped.add(index)
    return text, [tuple(call) for index, call in calls.items() if index not in dropped]


def written(name, arguments):
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


TRICKY = '{"a": "}{ \\"</tool_call>\\\\", "b": [{"c": []}, "합계 🧾"], "d": {}}'


@pytest.mark.parametrize(
    ("text", "expected", "calls"),
    [
        ("no call, 1 < 2", "no call, 1 < 2", []),
        (written("f", "{}"), "", [("f", "{}")]),
        (
            "I look.\n" + written("f", TRICKY) + "\n" + written("g", '{"x": 1}') + "\n",
            "I look.",
            [("f", TRICKY), ("g", '{"x": 1}')],
        ),
        (f"{written('f', '{}')}\nDone. ", "\nDone. ", [("f", "{}")]),
        ('<tool_call>\n{ "name" : "f" ,\n"arguments" : { } }\n</tool_call>', "", [("f", "{ }")]),
        ('<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', "", [("f", '{"x": 1}')]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {}, "id": 3}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "\\uac00\\"", "arguments": {}}</tool_call>', "", [('가"', "{}")]),
    ],
)
def test_calls_and_text_are_told_apart(text, expected, calls):
    for pieces in ([text], list(text), re.findall(".{1,3}", text, re.DOTALL)):
        assert parse(pieces) == (expected, calls)


BROKEN = [
    "<tool_call>",
    "<tool_call></tool_call>",
    "<tool_call>{}</tool_call>",
    "<tool_call>[1]</tool_call>",
    "<tool_call>f(1)</tool_call>",
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {x}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"x": 1}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"x": "1}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"x": 1]}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"x": 1}}',
    '<tool_call>{"name": "f", "argum',
    '<tool_call>{"name": "\\q", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f</tool_call>", "arguments": {}}',
    '<tool_call>{"name": "f", "arguments": {"x": ' + "[" * 5000,
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_call_is_given_back(text):
    for pieces in ([text], list(text), [f"Hi {text}"], ["Hi\n", text]):
        assert parse(pieces) == ("".join(pieces), [])


def test_a_call_after_a_broken_one_is_found():
    broken = '<tool_call>{"name": "f", "arguments": {"x": "1}}</tool_call>'
    text = f"{broken}\n{written('g', '{}')}"
    for pieces in ([text], list(text)):
        assert parse(pieces) == (broken, [("g", "{}")])


def test_a_long_call_takes_time_in_proportion():
    """A text that never ends its call, and one whose head is longer than that of any tool: 400 KB in small pieces."""
    spaces, arguments = " " * 400_000, '{"x": 1}'
    for text, expected in (
        (f"<tool_call>{spaces}", (f"<tool_call>{spaces}", [])),
        (f'<tool_call>{{{spaces}"name": "f", "arguments": {arguments}}}</tool_call>', ("", [("f", arguments)])),
    ):
        start = time.process_time()
        assert parse([text[at : at + 4] for at in range(0, len(text), 4)]) == expected
        assert time.process_time() - start < 3


def test_arguments_come_as_they_are_written():
    parser = ToolCallParser()
    assert parser.push('<tool_call>{"name": "f", "arguments": ') == []
    started, first = parser.push('{"x": "He')
    assert (started.name, first) == ("f", Arguments(0, '{"x": "He'))
    assert parser.push('llo"}') == [Arguments(0, 'llo"}')]
    assert parser.push("}</tool_call>") == parser.finish() == []


PIECES = st.one_of(
    st.sampled_from([*BROKEN, "<", "<tool", "</tool_call>", " \n ", '"', "}", "합계"]),
    st.builds(
        lambda name, arguments: written(name, json.dumps(arguments, ensure_ascii=False)),
        st.sampled_from(["f", "read_page"]),
        st.dictionaries(st.text(max_size=4), st.one_of(st.integers(), st.text(), st.lists(st.booleans())), max_size=3),
    ),
    st.text(max_size=8),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(PIECES, max_size=6), st.data())
def test_how_a_text_is_cut_does_not_matter(parts, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    edges = [0, *cuts, len(text)]
    whole = parse([text])
    assert parse([text[a:b] for a, b in pairwise(edges)]) == whole == parse(list(text))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(["f", "g"]), st.dictionaries(st.text(), st.text(), max_size=3)), max_size=4))
def test_written_calls_are_read_back(calls):
    text = "\n".join(written(name, json.dumps(arguments)) for name, arguments in calls)
    found = parse(list(text))
    assert found == ("", [(name, json.dumps(arguments)) for name, arguments in calls])
