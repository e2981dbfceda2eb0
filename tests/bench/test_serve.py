"""The comparison of many requests at once, without llama.cpp: the tables by hand, and our side on the reader."""

import numpy as np
import pytest

from bench.serve.__main__ import tables
from bench.serve.runners import OneAfterAnother, Task, Together, Turn
from bench.serve.stall import LENGTH, measure_stall
from console.errors import InputError
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.model import Model
from runtime.prompt import Prompt


@pytest.fixture(scope="module")
def model(exported):
    """The reader in 4 bits."""
    return Model(exported("w4"), "cpu")


def prompts(seed, count, length=20):
    return np.random.default_rng(seed).integers(100, 500, (count, length)).tolist()


def answer(model, ids, tokens):
    return list(generate(model, Prompt(np.array(ids), model.embed_tokens(np.array(ids))), greedy, tokens))


def test_tables_divide_within_rounds():
    """Rates the engine's by the other's, times the other way round."""
    turns = {
        (1, "engine"): [Turn(200, 0.1, 0.010), Turn(100, 0.2, 0.020)],
        (1, "other"): [Turn(100, 0.3, 0.005), Turn(100, 0.2, 0.020)],
    }
    lines = tables(["engine", "other"], turns)
    assert lines[2] == "| 1 at once | 150 | 100 · 1.50 (1.25–1.75) |"
    assert lines[6] == "| 1 at once | 0.15 | 0.25 · 2.00 (1.50–2.50) |"
    assert lines[10] == "| 1 at once | 15.0 | 12.5 · 0.75 (0.62–0.88) |"


def test_both_answer_every_token_and_the_figures_agree_with_the_clock(model):
    task = Task(prompts(0, 3), 12)
    together, apart = Together("engine", model, 2, 3, 40), OneAfterAnother(model, 2)
    before = together.now()
    turn = together.turn(task)
    passed = together.now() - before
    assert 36 / passed <= turn.rate
    assert 0 < turn.step < turn.first + 12 * turn.step <= passed * 2
    assert 0 < turn.outside < 1
    alone = apart.turn(task)
    assert alone.rate > 0
    assert alone.step < alone.first, "the median request waits for another"


def test_the_engine_gives_the_answers_of_generate(model):
    engine = Together("engine", model, 2, 2, 60)
    asked = prompts(1, 2)
    arrivals = [engine.submit(ids, 8) for ids in asked]
    engine.work()
    assert [arrival.tokens for arrival in arrivals] == [answer(model, ids, 8) for ids in asked]


def test_too_few_tokens_for_a_step_of_all_are_refused(model):
    with pytest.raises(InputError, match="more --tokens"):
        Together("engine", model, 2, 8, 40).turn(Task(prompts(2, 8), 3))


def test_a_long_prompt_stalls_for_a_part_of_it_only(model):
    """A prompt of four parts: its answers go on between them, so the longest gap is less than the whole."""
    stall = measure_stall(Together("engine", model, 2, 5, 1100), 3, 1024, 500)
    assert stall.alone < stall.call < stall.longest < 0.8 * stall.reading
    assert LENGTH > 16
