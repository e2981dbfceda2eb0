"""What is kept from one request to the next: keys and values of a row, and encoded images; never another answer."""

import numpy as np
import pytest

from calib_data.sources import open_documents
from runtime.decoding.sampling import Sampling
from runtime.engine.pictures import VisionCache, open_pictures
from runtime.prompt import embed_image, prompt_inputs

from .asking import alone, ask, engine_of, finish, random_ids, tokens_prompt

pytestmark = pytest.mark.slow

WINDOW = 64  # of the bundled reader


def answered(engine, ids, max_new_tokens=20):
    asked = ask(engine, tokens_prompt(ids), max_new_tokens)
    finish(engine)
    return asked


@pytest.mark.parametrize("length", [30, 300], ids=["within the window", "beyond it"])
def test_a_prompt_that_extends_a_finished_answer_reads_the_rest_only(length, reader):
    engine = engine_of(reader, 2)
    first = answered(engine, random_ids(1, length))
    turn = [*first.request.inputs.ids, *first.tokens, *random_ids(2, 40)]
    second = answered(engine, turn)
    # The last token of an answer was never an input of the decoder, unless an end token came after it.
    assert second.end.cached_tokens == length + len(first.tokens) - (first.end.reason == "length")
    assert second.tokens == alone(reader, second.request)
    assert first.end.cached_tokens == 0


def test_a_row_is_cut_back_while_its_windows_have_everything(reader):
    engine, start = engine_of(reader, 1), random_ids(1, 40)
    first = answered(engine, [*start, *random_ids(2, 10)], max_new_tokens=WINDOW - 50)
    second = answered(engine, [*start, *random_ids(3, 200)])
    assert (first.end.cached_tokens, second.end.cached_tokens) == (0, 40)
    assert second.tokens == alone(reader, second.request)
    third = answered(engine, [*start, *random_ids(4, 30)])  # the row of the second has lost its first tokens
    assert third.end.cached_tokens == 0
    assert third.tokens == alone(reader, third.request)


def test_the_same_prompt_again_reads_its_last_token(reader):
    engine, ids = engine_of(reader, 1), random_ids(1, 40)
    first, second = (answered(engine, ids, max_new_tokens=3) for _ in range(2))
    assert second.end.cached_tokens == 39
    assert first.tokens == second.tokens


def test_an_idle_row_between_running_ones_forgets_what_its_windows_lost(reader):
    engine = engine_of(reader, 3)
    below, kept, above = (
        ask(engine, tokens_prompt(random_ids(seed, 100)), n) for seed, n in ((1, 60), (2, 5), (3, 60))
    )
    finish(engine)
    again = answered(engine, [*kept.request.inputs.ids, *kept.tokens, *random_ids(4, 10)])
    assert again.end.cached_tokens == 0
    assert [one.tokens for one in (below, kept, above, again)] == [
        alone(reader, one.request) for one in (below, kept, above, again)
    ]


def test_random_conversations_are_answered_as_without_reuse(reader):
    """Prompts continue earlier answers, or share a random beginning with an earlier prompt."""
    engine, random = engine_of(reader, 3), np.random.default_rng(0)
    asked = [ask(engine, tokens_prompt(random_ids(0, 30)))]
    for number in range(40):
        before = asked[random.integers(max(0, len(asked) - 4), len(asked))]
        start = np.array([*before.request.inputs.ids, *before.tokens])
        start = start[: len(start) if random.random() < 0.6 else random.integers(20, 60)]
        ids = np.concatenate([start, random_ids(number, random.integers(1, 30))])
        asked.append(ask(engine, tokens_prompt(ids), int(random.integers(1, 15))))
        for _ in range(random.integers(0, 30)):
            engine.turn()
    finish(engine)
    assert sum(one.end.cached_tokens > 20 for one in asked) > 5
    for one in asked:
        assert one.tokens == alone(reader, one.request)


@pytest.fixture(scope="module")
def pages():
    return open_documents(split="evaluation", count=2, seed=5, kind="line")


def test_an_image_is_encoded_once(reader, pages):
    engine = engine_of(reader, 1)
    one, other = pages
    questions = [(one, "Read."), (other, "Read."), (one, "What is the first word?")]
    asked = []
    for page, question in questions:
        asked.append(ask(engine, prompt_inputs(reader, question, [page.image])))
        finish(engine)
    assert (engine.vision.misses, engine.vision.hits) == (2, 1)
    assert [one.tokens for one in asked] == [alone(reader, one.request) for one in asked]


def test_answers_to_one_prompt_share_its_images(reader, pages):
    """Sixteen answers about eight pages would hold 1.2 GB else, and resize for 13 seconds."""
    engine = engine_of(reader, 2)
    inputs = prompt_inputs(reader, "Read.", [page.image for page in pages])
    asked = [ask(engine, inputs, sampling=Sampling(seed=1, temperature=1.0))]
    asked += [ask(engine, inputs, like=asked[0], sampling=Sampling(seed=2, temperature=1.0)), ask(engine, inputs)]
    first, shared, apart = (one.sequence.pictures for one in asked)
    assert shared is first
    assert apart is not first
    finish(engine)
    assert engine.vision.misses == 2
    assert [one.tokens for one in asked] == [alone(reader, one.request) for one in asked]


def test_prompts_about_different_images_share_nothing_of_them(reader, pages):
    """Their token ids are the same: only the pixels differ."""
    engine = engine_of(reader, 1)
    one, other = (prompt_inputs(reader, "Read.", [page.image.resize((200, 40))]) for page in pages)
    assert (one.ids == other.ids).all()
    asked = []
    for inputs in (one, other, other):
        asked.append(ask(engine, inputs, 2))
        finish(engine)
    first = int(np.flatnonzero(one.ids == reader.chat.image_token_id)[0])
    assert asked[1].end.cached_tokens in (0, first)
    assert [one.tokens for one in asked] == [alone(reader, one.request) for one in asked]


def test_the_vision_cache_keeps_the_latest_used_up_to_its_size(reader):
    pages = open_documents(split="evaluation", count=3, seed=1, kind="line")
    pictures = [open_pictures(reader, prompt_inputs(reader, "Read.", [page.image]))[0] for page in pages]
    sizes = [picture.tokens * reader.manifest.text.hidden_size * 4 for picture in pictures]
    cache = VisionCache(reader, limit=sum(sizes) - 1)
    for number in (0, 1, 0, 2, 0, 1):  # the third pushes the second out
        embeds = list(cache.encode(pictures[number]))[-1]
        assert (embeds == embed_image(reader, pages[number].image, "page")).all()
    assert (cache.hits, cache.misses) == (2, 4)
