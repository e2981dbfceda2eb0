"""Real answers of the reader about a page: they validate, and drafts do not change them."""

import json

import pytest
from jsonschema import validate

from calib_data.sources import open_documents
from runtime.decoding.drafts import Drafts
from runtime.decoding.generate import generate
from runtime.decoding.sampling import Sampling
from runtime.decoding.structured import Constraint, Grammar, GrammarTokenizer
from runtime.decoding.thinking_budget import ThinkingBudget
from runtime.prompt import embed_prompt, prompt_inputs

pytestmark = pytest.mark.slow

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 20},
        "lines": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
        "total": {"type": "integer", "minimum": 0, "maximum": 99999},
    },
    "required": ["title", "lines", "total"],
    "additionalProperties": False,
}
TOKENS = 250


@pytest.fixture(scope="module")
def tokenizer(reader):
    return GrammarTokenizer(reader.chat, reader.manifest.text.vocab_size, reader.end_ids)


@pytest.fixture(scope="module")
def ask(reader):
    """Answer about a page, within a grammar or freely, with reasoning or without."""
    (document,) = open_documents("rendered", split="evaluation", count=1, seed=1, kind="transcription")
    prompts = {
        thinking: embed_prompt(reader, prompt_inputs(reader, document.prompt, [document.image], thinking=thinking))
        for thinking in (False, True)
    }

    def answer(grammar, sampling, *, thinking, drafts=None, budget=12):
        sampler = sampling.sampler()
        if grammar is not None:
            constraint = Constraint(grammar, reader.chat, thinking=thinking)
            sampler = constraint.limit(sampler, greedy=sampling.temperature == 0)
        if thinking:
            end = reader.chat.end_of_reasoning
            sampler = ThinkingBudget(budget, end, reader.chat.parse_reasoning(), reader.end_ids).limit(sampler)
        return list(generate(reader, prompts[thinking], sampler, TOKENS, drafts and Drafts(drafts)))

    return answer


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(seed=3, temperature=1.0, presence_penalty=0.5)], ids=str)
def test_answers_about_a_page_validate_with_drafts_or_without(thinking, sampling, reader, tokenizer, ask):
    grammar = Grammar.json_schema(tokenizer, SCHEMA)
    tokens, *others = (ask(grammar, sampling, thinking=thinking, drafts=drafts) for drafts in (None, 1, 3))
    assert others == [tokens, tokens]
    validate(json.loads(reader.chat.decode_answer(tokens, thinking=thinking).text), SCHEMA)


@pytest.mark.parametrize("thinking", [False, True])
def test_a_grammar_of_any_text_leaves_the_answer_as_it_is(thinking, tokenizer, ask):
    grammar = Grammar.regex(tokenizer, "(?s:.*)")
    free = ask(None, Sampling(), thinking=thinking)
    assert ask(grammar, Sampling(), thinking=thinking) == free
    assert len(free) > 10


def test_a_grammar_that_the_answer_matches_anyway_leaves_it(reader, tokenizer, ask):
    """Masks cut only what the model does not choose; greedily."""
    free = ask(None, Sampling(), thinking=False)
    text = reader.chat.decode(free)
    grammar = Grammar.choice(tokenizer, [text, "none"])
    assert reader.chat.decode(ask(grammar, Sampling(), thinking=False)) == text
