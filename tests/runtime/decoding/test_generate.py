"""A loaded model: embeddings in their places, prompts in chunks, steps against one pass, and where answers end."""

import itertools
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from calib_data.sources import open_documents
from console.errors import InputError
from runtime.decoding.drafts import Drafts
from runtime.decoding.forward import ANSWER_CHUNK, decode, prefill, teacher_forced
from runtime.decoding.generate import generate
from runtime.decoding.prompt_chunks import prompt_chunks
from runtime.decoding.sampling import greedy
from runtime.model import Model
from runtime.prompt import build_prompt, embed_image, prompt_inputs
from runtime.sizes import CHUNKINGS, Chunking

from ..damage import WEIGHTS, change_tensor, edit_json, set_context
from .prompts import random_prompt

pytestmark = pytest.mark.slow

CHUNKED = 1e-5  # relative to the largest logit: sums over keys in another order


@pytest.fixture(scope="module")
def int8_reader(exported):
    """The reader at 4 bits with an int8 KV cache."""
    return Model(exported("w4", kv_bits=8), "cpu")


def relative_error(value, reference):
    assert value.shape == reference.shape
    return np.abs(value - reference).max() / np.abs(reference).max()


LONGEST = CHUNKINGS["cpu"].longest


def forced(tokens, seen):
    """A sampler that notes the logits it is given and answers with the tokens it is told."""

    def sample(logits, generated):
        seen.append(logits.copy())
        return tokens[len(generated)]

    return sample


@pytest.mark.parametrize("tokens", [LONGEST, LONGEST + 1, 2 * LONGEST + 100])
def test_a_long_prompt_in_chunks_is_one_in_a_piece(tokens, reader):
    prompt = random_prompt(reader, tokens)
    cache, whole = (reader.decoder.new_cache(tokens + 1) for _ in range(2))
    logits = prefill(reader, cache, prompt)
    expected = decode(reader, whole, prompt.embeds, np.array([tokens - 1])).logits[0, 0]
    assert cache.lengths == whole.lengths == tokens
    assert relative_error(logits, expected) < CHUNKED
    # What is in the caches is the same too: it decides the next token.
    step = reader.embed_tokens(np.array([99])), np.array([0])
    assert relative_error(decode(reader, cache, *step).logits, decode(reader, whole, *step).logits) < CHUNKED


@pytest.mark.parametrize("tokens", [1, 15, 16, 33, 64, 150, 300])
def test_a_padded_prompt_is_one_without_padding(tokens, reader, monkeypatch):
    """As on a GPU, but with chunks as long as the reader's window; what follows is the same too, drafts and all."""
    prompt = random_prompt(reader, tokens)
    with reader.decoder.borrow_cache(tokens + 100) as cache:
        expected = prefill(reader, cache, prompt)
        step = reader.embed_tokens(np.array([99])), np.array([0])
        following = decode(reader, cache, *step).logits
    answer = list(generate(reader, prompt, greedy, 80))
    monkeypatch.setattr(reader, "chunking", Chunking(64, 16))
    with reader.decoder.borrow_cache(tokens + 100) as cache:
        assert relative_error(prefill(reader, cache, prompt), expected) < CHUNKED
        assert cache.lengths == tokens
        assert relative_error(decode(reader, cache, *step).logits, following) < CHUNKED
    assert list(generate(reader, prompt, greedy, 80)) == answer
    assert list(generate(reader, prompt, greedy, 80, Drafts(2))) == answer


def test_calls_of_a_gpu_have_few_lengths():
    """They cover the prompt in order; only the first is shorter, and it is padded unless a window is too short."""
    chunking, lengths = CHUNKINGS["cuda"], set()
    for length in range(1, 3 * chunking.longest, 7):
        calls = list(prompt_chunks(length, chunking, 4096))
        assert [call.start for call in calls] == [0, *(call.stop for call in calls[:-1])]
        assert calls[-1].stop == length
        assert all(call.padding == 0 for call in calls[1:])
        lengths |= {call.stop - call.start + call.padding for call in calls}
    assert lengths == set(range(256, 4097, 256))
    assert list(prompt_chunks(300, chunking, 511)) == [(0, 300, 0)]
    assert list(prompt_chunks(300, chunking, 512)) == [(0, 300, 212)]


@pytest.mark.parametrize("length", [1, 2, 90, ANSWER_CHUNK + 1, ANSWER_CHUNK + 2])
def test_teacher_forced_logits_are_those_of_generation(length, reader):
    """Ninety tokens are more than the window of the sliding layers; the longest go in two calls after the prompt's."""
    prompt = random_prompt(reader, 50)
    answer = np.random.default_rng(length).integers(80, 500, length).tolist()
    steps = []
    assert list(generate(reader, prompt, forced(answer, steps), length)) == answer
    found = list(teacher_forced(reader, prompt, answer))
    assert max(map(len, found)) <= ANSWER_CHUNK
    assert relative_error(np.concatenate(found), np.array(steps)) < CHUNKED


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 1, 0)])
def test_embeddings_are_rows_of_the_table_and_of_the_pictures(order, reader):
    documents = open_documents(split="evaluation", count=2, seed=9, kind="line")
    pictures = [documents[number].image for number in order]
    prompt = build_prompt(reader, "Read the text.", pictures)
    table = load_file(reader.folder / WEIGHTS)["model.language_model.embed_tokens.weight"].astype(np.float32)
    expected = table[prompt.ids]
    expected[prompt.ids == 67] = np.concatenate([embed_image(reader, picture, "") for picture in pictures])
    np.testing.assert_array_equal(prompt.embeds, expected)
    assert prompt.embeds.dtype == np.float32


def test_text_alone_has_no_image_places(reader):
    prompt = build_prompt(reader, "Read the text.")
    assert 67 not in prompt.ids
    np.testing.assert_array_equal(prompt.embeds, reader.embed_tokens(prompt.ids))


@pytest.mark.parametrize(("words", "pictures", "copies"), [(4000, 0, 1.1), (1, 80, 1.5)])
def test_a_prompt_holds_its_embeddings_once(words, pictures, copies, reader):
    """Beside them only a chunk of text, and the patches of one picture: a fifth of the embeddings of eighty."""
    text, images = "word " * words, [Image.new("RGB", (112, 112))] * pictures
    build_prompt(reader, "", [Image.new("RGB", (112, 112))])  # loads the vision graph
    tracemalloc.start()
    prompt = build_prompt(reader, text, images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (prompt.ids == 67).sum() == 16 * pictures
    assert peak < copies * prompt.embeds.nbytes


def test_a_picture_that_is_too_long_is_named(reader):
    good, bad = Image.new("RGB", (56, 56)), Image.new("RGB", (3, 1000))
    with pytest.raises(InputError, match=r"^scan-7\.png: 3 x 1000 pixels"):
        prompt_inputs(reader, "Read the text.", [good, bad], names=["scan-6.png", "scan-7.png"])
    with pytest.raises(InputError, match=r"^image 2: 3 x 1000 pixels"):
        build_prompt(reader, "Read the text.", [good, bad])


@pytest.mark.parametrize(
    ("generation", "config", "text_config", "expected"),
    [
        (53, None, 7, [53]),
        ([361, 53], None, 7, [361, 53]),
        (None, 5, 7, [5]),
        (None, [5, 6], 7, [5, 6]),
        (None, None, 7, [7]),
    ],
)
def test_end_tokens_are_where_transformers_looks(generation, config, text_config, expected, copied):
    text = json.loads((copied / "config.json").read_text())["text_config"]
    edit_json(copied / "config.json", eos_token_id=config, text_config={**text, "eos_token_id": text_config})
    edit_json(copied / "generation_config.json", eos_token_id=generation)
    assert Model(copied, "cpu").end_ids == expected


def test_a_folder_without_generation_settings_recommends_nothing(copied):
    (copied / "generation_config.json").unlink()
    model = Model(copied, "cpu")
    assert model.generation.values == {}
    assert model.end_ids == [53]


@pytest.mark.parametrize("end", [361, 53])
def test_every_end_token_ends_an_answer(end, copied):
    edit_json(copied / "generation_config.json", eos_token_id=[361, 53])
    model = Model(copied, "cpu")
    tokens = [100, 101, end, 102]
    assert list(generate(model, build_prompt(model, "Hello"), forced(tokens, []), 10)) == [100, 101]


def test_nothing_is_computed_beyond_the_last_token(reader):
    seen = []
    prompt = build_prompt(reader, "Hello")
    assert list(generate(reader, prompt, forced([100, 101, 102], seen), 3)) == [100, 101, 102]
    assert len(seen) == 3


@pytest.mark.parametrize("drafts", [None, 2])
@pytest.mark.parametrize("kind", ["reader", "int8_reader"])
def test_a_cache_that_was_used_before_leaves_no_trace(kind, drafts, request):
    """After a prompt of many windows that is cut in its answer, one within a window and one beyond it."""
    reader = request.getfixturevalue(kind)
    found, expected = [], []
    long = generate(
        reader, random_prompt(reader, 700), forced(list(range(100, 200)), []), 90, drafts and Drafts(drafts)
    )
    assert len(list(itertools.islice(long, 30))) == 30
    long.close()
    for length in (20, 150):
        prompt, tokens = random_prompt(reader, length), list(range(200, 230))
        for model, seen in ((reader, found), (Model(reader.folder, "cpu"), expected)):
            list(generate(model, prompt, forced(tokens, seen), 30, drafts and Drafts(drafts)))
    np.testing.assert_array_equal(found, expected)


def test_a_longer_cache_takes_the_place_of_a_shorter(reader):
    model = Model(reader.folder, "cpu")
    rooms = []
    for capacity in (50, 40, 60, 10):
        with model.decoder.borrow_cache(capacity) as cache:
            rooms.append(cache.capacity)
            cache.lengths[:] = 5
    assert rooms == [50, 50, 60, 60]
    with model.decoder.borrow_cache(1) as cache:
        assert cache.lengths == 0


def test_two_answers_of_a_model_at_a_time(reader):
    prompts, answer = [random_prompt(reader, length) for length in (90, 40)], [100] * (ANSWER_CHUNK + 2)
    alone = [np.concatenate(list(teacher_forced(reader, prompt, answer))) for prompt in prompts]
    pairs = zip(*(teacher_forced(reader, prompt, answer) for prompt in prompts), strict=True)
    together = [np.concatenate(parts) for parts in zip(*pairs, strict=True)]
    np.testing.assert_array_equal(together, alone)


def test_prompt_and_known_answer_must_fit_the_context(copied):
    prompt_tokens = len(build_prompt(Model(copied, "cpu"), "Hello").ids)
    set_context(copied, prompt_tokens + 5)
    model = Model(copied, "cpu")
    prompt = build_prompt(model, "Hello")
    assert np.concatenate(list(teacher_forced(model, prompt, [100] * 5))).shape == (5, 512)
    with pytest.raises(InputError, match=f"known answer: {prompt_tokens + 6} tokens, the model's context is"):
        teacher_forced(model, prompt, [100] * 6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(value, copied):
    """One damaged weight of the head is enough, in either way of computing logits."""

    def put(weight):
        weight = weight.copy()
        weight[300, :] = value
        return weight

    change_tensor(copied, "lm_head.weight", put)
    model = Model(copied, "cpu")
    prompt = build_prompt(model, "Hello")
    with pytest.raises(InputError, match=f"^{copied}: gives NaN or infinite numbers.*--dtype bfloat16"):
        list(generate(model, prompt, greedy, 3))
    with pytest.raises(InputError, match="NaN or infinite"):
        list(teacher_forced(model, prompt, [100, 101]))


@pytest.mark.parametrize("drafts", [None, Drafts(2)], ids=["steps", "drafts"])
def test_an_int8_cache_hides_no_overflow(drafts, int8_reader):
    """Its keys and values are numbers whatever they are made of, so an answer after a broken word would look sound."""
    prompt = random_prompt(int8_reader, 200)
    assert len(list(generate(int8_reader, prompt, greedy, 3, drafts))) == 3
    for value in (np.nan, np.inf):
        prompt.embeds[20:30] = value
        with pytest.raises(InputError, match="gives NaN or infinite numbers"):
            list(generate(int8_reader, prompt, greedy, 3, drafts))
