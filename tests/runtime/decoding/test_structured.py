"""What random logits write validates against the schema: by jsonschema, Python's re and json, not by llguidance."""

import json
import re
import sys

import numpy as np
import pytest
from jsonschema import Draft202012Validator, FormatChecker
from llguidance.numpy import apply_token_bitmask_inplace
from tokenizers import AddedToken, Tokenizer

from console.errors import InputError
from runtime.chat import Chat
from runtime.decoding.sampling import Sampling, greedy
from runtime.decoding.structured import Constraint, Grammar, GrammarTokenizer
from runtime.decoding.thinking_budget import ThinkingBudget

from ..test_chat import write_folder
from .json_schemas import random_schema
from .random_answers import CHAT, END_IDS, TOKENIZER, VOCABULARY, answer, random_logits, sampled

SCHEMAS = 60  # for each way of thinking


FORMATS = FormatChecker(formats=["ipv4"])  # for llguidance, every year has a 29 February


def is_valid(schema, text):
    return Draft202012Validator(schema, format_checker=FORMATS).is_valid(json.loads(text))


def limited(grammar, sampler, budget, seed, chat=CHAT, thinking=True):
    """The sampler in its grammar and, in either order, in its thinking budget."""
    constraint = Constraint(grammar, chat, thinking=thinking)
    if budget is None:
        return constraint.limit(sampler)
    budget = ThinkingBudget(budget, chat.end_of_reasoning, chat.parse_reasoning(), grammar.tokenizer.end_ids)
    return budget.limit(constraint.limit(sampler)) if seed % 2 else constraint.limit(budget.limit(sampler))


@pytest.mark.parametrize(
    ("number", "thinking", "budget"), [(0, False, None), (1, True, None), (2, True, 3), (3, True, 30)]
)
def test_random_answers_to_random_schemas_validate(number, thinking, budget):
    finished = 0
    for seed in range(number * SCHEMAS, (number + 1) * SCHEMAS):
        schema = random_schema(seed)
        grammar = Grammar.json_schema(TOKENIZER, schema)
        sampler = limited(grammar, sampled(seed), budget, seed, thinking=thinking)
        tokens = answer(sampler, random_logits(seed))
        if tokens is not None:
            finished += 1
            assert is_valid(schema, CHAT.decode_answer(tokens, thinking=thinking).text)
            assert thinking == (CHAT.think_end_id in tokens)
            if thinking:
                end = tokens.index(CHAT.think_end_id)
                assert CHAT.decode(tokens[end:]).startswith("\n\n")
                assert budget is None or end <= budget + 1  # and the template's line break
    assert finished > 0.9 * SCHEMAS


def test_greedy_choices_without_a_mask_are_those_with_one():
    for seed in range(25):
        grammar, logits = Grammar.json_schema(TOKENIZER, random_schema(seed)), random_logits(seed)
        for sampling in (Sampling(), Sampling(presence_penalty=1.5, frequency_penalty=0.2)):
            with_mask, without = (
                answer(Constraint(grammar, CHAT, thinking=False).limit(sampling.sampler(), greedy=fast), logits, 200)
                for fast in (False, True)
            )
            assert with_mask == without


@pytest.mark.parametrize("vocabulary", [512, 513, VOCABULARY])
def test_masks_are_those_of_llguidance(vocabulary):
    """Its own function, which takes 30 times as long; for logits of every length."""
    tokenizer = GrammarTokenizer(CHAT, vocabulary, END_IDS)
    grammar = Grammar.json_schema(tokenizer, {"type": "array", "items": {"type": ["string", "number"]}, "minItems": 9})
    logits, matcher, masks = random_logits(1, vocabulary=VOCABULARY), grammar.begin(), 0

    def sample(masked, generated):
        nonlocal masks
        masks += 1
        expected = logits(len(generated))[:vocabulary]
        apply_token_bitmask_inplace(expected, np.frombuffer(matcher.compute_bitmask(), np.int32))
        np.testing.assert_array_equal(masked, expected)
        return greedy(masked, generated)

    choose, tokens = Constraint(grammar, CHAT, thinking=False).limit(sample), []
    while (token := choose(logits(len(tokens))[:vocabulary], tokens)) not in END_IDS:
        assert matcher.consume_token(token)
        tokens.append(token)
    assert masks > 20


PATTERNS = [
    r"[A-Z]{2}-[0-9]{3}",
    r"(yes|no|maybe)( please)?",
    r"합계: ₩[1-9][0-9]{0,2}(,[0-9]{3}){0,2}",
    r'a/b"c\\d\{1\}',
    r"\d{1,3}(\.\d{1,2})?",
]


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_random_answers_match_a_regular_expression(pattern, thinking):
    grammar = Grammar.regex(TOKENIZER, pattern)
    for seed in range(20):
        tokens = answer(Constraint(grammar, CHAT, thinking=thinking).limit(sampled(seed)), random_logits(seed))
        assert re.fullmatch(pattern, CHAT.decode_answer(tokens, thinking=thinking).text)


def test_a_choice_is_one_of_the_texts_and_can_be_any():
    texts = ["yes", "no", "no.", "(a|b)*", "합계 1,200원", 'x/"\\\n.$^y', "[", "é"]
    grammar = Grammar.choice(TOKENIZER, texts)
    found = {
        CHAT.decode(answer(Constraint(grammar, CHAT, thinking=False).limit(sampled(seed)), random_logits(seed)))
        for seed in range(150)
    }
    assert found == set(texts)


def test_any_json_object():
    grammar = Grammar.json_object(TOKENIZER)
    answers = [
        answer(Constraint(grammar, CHAT, thinking=False).limit(sampled(seed)), random_logits(seed))
        for seed in range(40)
    ]
    objects = [json.loads(CHAT.decode(tokens)) for tokens in answers if tokens is not None]
    assert len(objects) > 20
    assert all(isinstance(one, dict) for one in objects)


def test_white_space_in_json_is_bounded():
    grammar = Grammar.json_schema(TOKENIZER, {"type": "object", "properties": {"a": {"type": "integer"}}})

    def takes(text):
        matcher, tokens = grammar.begin(), CHAT.encode_text(text)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    assert all(map(takes, ['{"a":1}', '{ "a": 1 }', '{\n  "a": 1\n}', json.dumps({"a": 1}, indent=4)]))
    assert not any(map(takes, ['{"a":  1}', '{\n\n"a": 1}', ' {"a": 1}', '{"a": 1}\n']))


TOOLS = {
    "get_total": {"type": "object", "properties": {"currency": {"enum": ["EUR", "KRW"]}}, "required": ["currency"]},
    "get_totals": {"properties": {"pages": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}}},
    "다음-page": None,
}


def tool_folder(folder, think_tokens, tool_tokens):
    """A tokenizer with or without tokens of its own for `</think>`, `<tool_call>` and `</tool_call>`."""
    write_folder(folder, think_tokens=think_tokens)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in tool_tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    return Chat(folder)


@pytest.mark.parametrize("think_tokens", [False, True])
@pytest.mark.parametrize("tool_tokens", [[], ["<tool_call>"], ["<tool_call>", "</tool_call>"]])
def test_random_tool_calls_are_in_the_form_of_the_template(tmp_path, think_tokens, tool_tokens):
    chat = tool_folder(tmp_path, think_tokens, tool_tokens)
    vocabulary, ends = len(chat.vocabulary) + 7, (1,)
    tokenizer = GrammarTokenizer(chat, vocabulary, ends)
    counts, called = set(), set()
    for seed in range(36):
        several, thinking = seed % 3 > 0, think_tokens and seed % 2 > 0
        grammar = Grammar.tool_calls(tokenizer, TOOLS, several=several)
        sampler = limited(grammar, sampled(seed), 20 if thinking else None, seed, chat, thinking)
        tokens = answer(sampler, random_logits(seed, chat, vocabulary, ends), end_ids=ends)
        if tokens is None:
            continue
        text = chat.decode_answer(tokens, thinking=thinking).text
        calls = re.findall(r'<tool_call>(\{"name": "[^"]+", "arguments": \{.*?\}\})</tool_call>', text, re.DOTALL)
        assert "\n".join(f"<tool_call>{call}</tool_call>" for call in calls) == text
        counts.add((several, min(len(calls), 2)))
        for call in map(json.loads, calls):
            called.add(call["name"])
            assert Draft202012Validator(TOOLS[call["name"]] or {"maxProperties": 0}).is_valid(call["arguments"])
            assert isinstance(call["arguments"], dict)
    assert called == set(TOOLS)
    assert {(False, 1), (True, 1)} <= counts <= {(False, 1), (True, 1), (True, 2)}


@pytest.mark.parametrize("tool_tokens", [[], ["<tool_call>"]])
def test_a_tool_call_within_the_reasoning(tmp_path, tool_tokens):
    """It begins the answer where calls are asked for. Else its token ends the reasoning; its text ends the request."""
    chat = tool_folder(tmp_path, True, tool_tokens)
    tokenizer = GrammarTokenizer(chat, len(chat.vocabulary), (1,))
    opening = chat.encode_text("I look.<tool_call>")
    calling = scripted(chat, opening)
    asked_for = limited(Grammar.tool_calls(tokenizer, {"f": None}, several=False), calling, None, 0, chat)
    called = chat.decode(answer(asked_for, zeros(tokenizer), end_ids=(1,)))
    assert called == 'I look.<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    forbidden = limited(Grammar.choice(tokenizer, ["1,200"]), calling, None, 0, chat)
    if tool_tokens:
        assert chat.decode(answer(forbidden, zeros(tokenizer), end_ids=(1,))) == "I look.\n</think>\n\n1,200"
    else:
        with pytest.raises(InputError, match="the model called a tool instead"):
            answer(forbidden, zeros(tokenizer), end_ids=(1,))


def scripted(chat, tokens):
    """A model that wants to say these tokens, and then the first that is allowed."""
    return lambda logits, generated: tokens[len(generated)] if len(generated) < len(tokens) else greedy(logits, [])


def zeros(tokenizer):
    return lambda _: np.zeros(tokenizer.compiled.vocab_size, np.float32)


@pytest.mark.parametrize("think_tokens", [False, True])
@pytest.mark.parametrize(
    "written", ["", "I look.", "I look.\n", "I look.</think>", "I look.</think>\n", "</think>\n\n"]
)
def test_the_answer_begins_where_the_template_begins_it(tmp_path, written, think_tokens):
    """Whatever part of the end the model wrote. Without one, it ended its turn, and is held to an answer."""
    chat = Chat(write_folder(tmp_path, think_tokens=think_tokens))
    tokenizer = GrammarTokenizer(chat, len(chat.vocabulary), (1,))
    for budget in (None, 0, 1, 5, 50):
        model = scripted(chat, [*chat.encode_text(written), *([] if "</think>" in written else [1])])
        sampler = limited(Grammar.choice(tokenizer, ["1,200"]), model, budget, 1, chat)
        text = chat.decode(answer(sampler, zeros(tokenizer), end_ids=(1,)))
        reasoning, end, rest = text.partition("</think>")
        assert end + rest == "</think>\n\n1,200"
        assert "</think>" in written or reasoning.endswith("\n")


def test_a_token_may_hold_the_end_of_the_reasoning_and_the_begin_of_the_answer(tmp_path):
    chat = Chat(write_folder(tmp_path, think_tokens=False))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (">\n\n[1", ">\n\n ", ">[")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    chat = Chat(tmp_path)
    grammar = Grammar.regex(GrammarTokenizer(chat, len(chat.vocabulary), (1,)), r"\[1,2\]")
    for last, expected in ((">\n\n[1", ">\n\n[1,2]"), (">\n\n ", ">\n\n [1,2]"), (">[", ">[1,2]")):
        tokens = [*chat.encode_text("I look.</think"), chat.vocabulary[last]]
        sampler = Constraint(grammar, chat, thinking=True).limit(scripted(chat, tokens))
        assert chat.decode(answer(sampler, zeros(grammar.tokenizer), end_ids=(1,))) == f"I look.</think{expected}"


def test_a_tokenizer_with_gaps_between_its_ids(tmp_path):
    """No filler is ever written: it is no text."""
    write_folder(tmp_path, think_tokens=False)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] += 9
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    chat = Chat(tmp_path)
    tokenizer = GrammarTokenizer(chat, vocabulary[last] + 4, (1,))
    grammar = Grammar.regex(tokenizer, "(?s:.{40})")
    used = set()
    for seed in range(40):
        logits = random_logits(seed, chat, vocabulary[last] + 4, (1,))
        tokens = answer(Constraint(grammar, chat, thinking=False).limit(sampled(seed)), logits, end_ids=(1,))
        assert len(chat.decode(tokens)) == 40
        used.update(tokens)
    assert used <= set(vocabulary.values())


WRONG_SCHEMAS = [
    ([], "must be a JSON object"),
    (True, "must be a JSON object"),
    ({"properties": {"a": {"type": "text"}}}, "Invalid type: text"),
    ({"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}, "Unsatisfiable"),
    ({"$ref": "https://example.com/schema.json"}, "not present in a registry"),
    (
        {"properties": {"a": {"type": "string", "pattern": "(?=a)b"}}},
        "look-around, including look-ahead and look-behind, is not supported",
    ),
    ({"properties": {"a": {"type": "string", "format": "color"}}}, "Unknown format: color"),
    ({"unevaluatedProperties": False}, "Unimplemented keys"),
    ({"unevaluatedProperties": False, "x-guidance": {"lenient": True}}, "Unimplemented keys"),
    ({"const": float("nan")}, "is not JSON"),
    ({"const": "\ud800"}, "half of a surrogate pair"),
]


@pytest.mark.parametrize(("schema", "message"), WRONG_SCHEMAS)
def test_a_schema_that_cannot_be_enforced_is_refused(schema, message):
    with pytest.raises(InputError, match=f"^JSON schema: [^\n]*{message}[^\n]*$"):
        Grammar.json_schema(TOKENIZER, schema)
    with pytest.raises(InputError, match=f"^tool f: parameters: [^\n]*{message}[^\n]*$"):
        Grammar.tool_calls(TOKENIZER, {"e": None, "f": schema})


def test_a_schema_nested_too_deeply_is_refused():
    schema = {"type": "integer"}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(InputError, match=r"^JSON schema: "):
        Grammar.json_schema(TOKENIZER, schema)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grammar.json_schema(TOKENIZER, {"$ref": "#"}), "JSON schema: NoExtension"),
        (lambda: Grammar.regex(TOKENIZER, "a("), "regular expression: unclosed group"),
        (lambda: Grammar.regex(TOKENIZER, r"(a)\1"), "regular expression: backreferences are not supported"),
        (lambda: Grammar.regex(TOKENIZER, "\udfff"), "regular expression: is not valid Unicode"),
        (lambda: Grammar.regex(TOKENIZER, "[a&&b]"), "regular expression: "),
        (lambda: Grammar.choice(TOKENIZER, []), "choice: is empty"),
        (lambda: Grammar.choice(TOKENIZER, ["a", "\udfff"]), "choice: is not valid Unicode"),
        (lambda: Grammar.tool_calls(TOKENIZER, {}), "tools: is empty"),
        (lambda: GrammarTokenizer(CHAT, VOCABULARY, (9999,)), "structured output cannot use it .EOS token ID 9999"),
    ],
)
def test_what_cannot_be_enforced_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_without_llguidance_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match=r"needs llguidance; run: pip install '\.\[serve\]'"):
        GrammarTokenizer(CHAT, VOCABULARY, END_IDS)


def test_an_answer_outside_its_grammar_ends_with_an_error():
    """As when another sampler, around this one, forces a token."""
    choose = Constraint(Grammar.choice(TOKENIZER, ["yes"]), CHAT, thinking=False).limit(greedy)
    with pytest.raises(InputError, match="structured output: the answer left the grammar"):
        choose(np.zeros(VOCABULARY, np.float32), CHAT.encode_text("no"))


def test_answers_of_one_grammar_do_not_disturb_each_other():
    schema = random_schema(5)
    grammar, logits = Grammar.json_schema(TOKENIZER, schema), [random_logits(seed) for seed in range(8)]
    alone = [
        answer(Constraint(grammar, CHAT, thinking=False).limit(sampled(seed)), one, 80)
        for seed, one in enumerate(logits)
    ]
    samplers = [Constraint(grammar, CHAT, thinking=False).limit(sampled(seed)) for seed in range(8)]
    rows = [[] for _ in samplers]
    for _ in range(80):
        for row, sampler, one in zip(rows, samplers, logits, strict=True):
            if not row or row[-1] not in END_IDS:
                row.append(sampler(one(len(row)), row))
    assert [row[:-1] if row[-1] in END_IDS else None for row in rows] == alone


@pytest.mark.parametrize(
    "link",
    [
        lambda following: {"items": following},
        lambda following: {"properties": {"a": following}},
        lambda following: {"prefixItems": [following]},
        lambda following: {"allOf": [following]},
    ],
)
def test_long_chains_of_references_do_not_end_the_process(link):
    """llguidance follows them by recursion."""
    chain = {f"d{number}": link({"$ref": f"#/$defs/d{number + 1}"}) for number in range(2500)}
    schema = {"$defs": chain | {"d2500": {"type": "null"}}, "$ref": "#/$defs/d0"}
    grammar = Grammar.json_schema(TOKENIZER, schema)
    tokens = answer(limited(grammar, sampled(1), None, 1, thinking=False), random_logits(1), limit=100)
    assert tokens is None or is_valid({}, CHAT.decode(tokens))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grammar.json_schema(TOKENIZER, {"enum": ["x" * 300_000]}),
        lambda: Grammar.regex(TOKENIZER, "x" * 300_000),
        lambda: Grammar.choice(TOKENIZER, ["x" * 150_000, "y" * 150_000]),
        lambda: Grammar.tool_calls(TOKENIZER, {f"f{number}": {"title": "x" * 3000} for number in range(100)}),
    ],
)
def test_a_grammar_that_is_too_large_is_refused(make):
    with pytest.raises(InputError, match=r"^(JSON schema|regular expression|choice|tools): is too large \(\d+ bytes"):
        make()
