"""`</think>` comes at the token of the budget; what follows is what plain decoding makes of that prefix."""

import numpy as np
import pytest

from calib_data.sources import open_documents
from runtime.answer import AnswerStream, answer_settings
from runtime.decoding.drafts import Drafts
from runtime.decoding.forward import prefill
from runtime.decoding.generate import generate
from runtime.decoding.sampling import Sampling, greedy
from runtime.decoding.thinking_budget import ThinkingBudget
from runtime.prompt import Prompt, embed_prompt, prompt_inputs

pytestmark = pytest.mark.slow

TOKENS = 36


@pytest.fixture(scope="module")
def prompt(reader):
    (document,) = open_documents("rendered", split="evaluation", count=1, seed=1, kind="transcription")
    return embed_prompt(reader, prompt_inputs(reader, document.prompt, [document.image], thinking=True))


def budget_of(reader, tokens):
    return ThinkingBudget(tokens, reader.chat.end_of_reasoning, reader.chat.parse_reasoning(), reader.end_ids)


def forced_after(reader, reasoning):
    """What the template writes after this reasoning: a line break that is there is not repeated."""
    written = reader.chat.decode(reasoning)
    return reader.chat.encode_text("</think>\n\n" if written.endswith("\n") else "\n</think>\n\n")


def continued(reader, prompt, prefix, tokens):
    """The greedy answer to a prompt that ends with `prefix`: no budget is known there."""
    ids = np.array(prefix)
    longer = Prompt(np.concatenate((prompt.ids, ids)), np.concatenate((prompt.embeds, reader.embed_tokens(ids))))
    return list(generate(reader, longer, greedy, tokens))


@pytest.mark.parametrize("drafts", [None, 1, 3, 8])
@pytest.mark.parametrize("tokens", [1, 2, 5, 11])
def test_greedy_reasoning_is_cut_at_its_budget(tokens, drafts, reader, prompt):
    plain = list(generate(reader, prompt, never_ends(reader), TOKENS))
    ending = forced_after(reader, plain[:tokens])
    budget = budget_of(reader, tokens)
    sampler = budget.limit(never_ends_within(reader, tokens))
    found = list(generate(reader, prompt, sampler, TOKENS, drafts and Drafts(drafts)))
    prefix = [*plain[:tokens], *ending]
    assert found[: len(prefix)] == prefix
    assert reader.chat.parse_reasoning(found).tokens == len(prefix) - len(reader.chat.end_of_reasoning.marker)
    assert found[len(prefix) :] == continued(reader, prompt, prefix, TOKENS - len(prefix))
    assert budget.spent


def never_ends_within(reader, tokens):
    """Greedy, but the first tokens are reasoning that does not end: answers of the reader would be too short."""
    free = never_ends(reader)
    return lambda logits, generated: (free if len(generated) < tokens else greedy)(logits, generated)


def never_ends(reader):
    ends = [*reader.end_ids, reader.chat.think_end_id]

    def sample(logits, generated):
        logits = logits.copy()
        logits[ends] = -np.inf
        return greedy(logits, generated)

    return sample


@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_sampled_reasoning_is_cut_alike_with_drafts(penalty, reader, prompt):
    sampling = Sampling(seed=5, temperature=2.0, presence_penalty=penalty)
    plain, *others = (
        list(generate(reader, prompt, budget_of(reader, 7).limit(sampling.sampler()), TOKENS, drafts))
        for drafts in (None, Drafts(2), Drafts(8))
    )
    ending = forced_after(reader, plain[:7])
    assert plain[7 : 7 + len(ending)] == ending
    assert others == [plain, plain]


@pytest.mark.parametrize("tokens_allowed", [3, 4])
def test_reasoning_within_its_budget_ends_by_itself(tokens_allowed, reader, prompt):
    """It has three tokens. What the model writes after `</think>`, longer than the budget, is its own."""
    tokens = [100, 101, 102, reader.chat.think_end_id, *range(103, 123)]
    budget = budget_of(reader, tokens_allowed)
    sampler = budget.limit(lambda logits, generated: tokens[len(generated)])
    assert list(generate(reader, prompt, sampler, len(tokens))) == tokens
    assert not budget.spent


@pytest.mark.parametrize("drafts", [None, 3])
def test_an_answer_comes_where_the_turn_would_end_within_the_reasoning(drafts, reader, prompt):
    tokens = [100, 101, reader.end_ids[0]]
    prefix = [*tokens[:2], *forced_after(reader, tokens[:2])]
    budget = budget_of(reader, 50)
    sampler = budget.limit(
        lambda logits, generated: tokens[len(generated)] if len(generated) < 3 else greedy(logits, generated)
    )
    found = list(generate(reader, prompt, sampler, TOKENS, drafts and Drafts(drafts)))
    assert found == [*prefix, *continued(reader, prompt, prefix, TOKENS - len(prefix))]
    assert not budget.spent


def test_rows_of_a_batch_have_budgets_of_their_own(reader, prompt):
    """Two sequences that step together, as a server would: each is the answer that it has alone."""
    limits = (3, 6)
    alone = [list(generate(reader, prompt, budget_of(reader, n).limit(never_ends(reader)), 20)) for n in limits]
    samplers = [budget_of(reader, n).limit(never_ends(reader)) for n in limits]
    cache = reader.decoder.new_cache(len(prompt.ids) + 20, batch=2)
    logits = np.stack([prefill(reader, cache.row(row), prompt) for row in range(2)])
    assert cache.lengths.tolist() == [len(prompt.ids)] * 2
    found: list[list[int]] = [[], []]
    for _ in range(20):
        for row, tokens in enumerate(found):
            tokens.append(samplers[row](logits[row], tokens))
        last = np.array([tokens[-1] for tokens in found])
        embeds = reader.embed_tokens(last)[:, None]
        logits = reader.decoder.run(cache, embeds, np.zeros((2, 1), np.int64)).logits[:, 0]
    assert found == alone


def settings(reader, **options):
    return answer_settings(reader, reader.draft_policy, {"temperature": 0, "thinking": True, **options})


@pytest.mark.parametrize("draft_tokens", [0, 2])
def test_an_answer_says_that_its_budget_was_spent(draft_tokens, reader):
    inputs = prompt_inputs(reader, "Read the text.", thinking=True)
    stream = AnswerStream(reader, inputs, settings(reader, thinking_budget=2, draft_tokens=draft_tokens))
    shown, answer = "".join(stream), stream.finish()
    ending = forced_after(reader, answer.tokens[:2])
    assert answer.tokens[2 : 2 + len(ending)] == ending
    assert answer.reasoning_tokens == 2 + ending.index(reader.chat.think_end_id)  # with the template's line break
    assert answer.budget_spent
    assert shown == f"{answer.reasoning}\n</think>\n\n{answer.text}"
    assert answer.reasoning == reader.chat.decode(answer.tokens[:2]).strip()


def test_a_budget_of_none_is_a_prompt_without_reasoning(reader):
    """As the template writes it, so that the model sees what it was trained on."""
    options = settings(reader, thinking_budget=0)
    assert not options.thinking
    inputs = prompt_inputs(reader, "Read the text.", thinking=options.thinking)
    answer = AnswerStream(reader, inputs, options).finish()
    plain = AnswerStream(reader, inputs, settings(reader, thinking=False)).finish()
    assert (answer.tokens, answer.reasoning, answer.reasoning_tokens) == (plain.tokens, "", 0)
    assert (answer.budget_spent, plain.budget_spent) == (True, False)
