"""The comparison with llama.cpp, without it: the model's size, the table by hand, and our side on a small model."""

import numpy as np
import pytest

from bench.llama_cpp.__main__ import HEADER, measure, ratio, table
from bench.llama_cpp.model import config, weight_bytes
from bench.llama_cpp.runners import Memory, Ours, Task, Turn, rates
from console.errors import InputError
from quantize.plan.architecture import read_architecture
from runtime.decoding.forward import prefill
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.model import Model
from runtime.prompt import Prompt


class Clockwork:
    """A row whose turns are known; keeps the order in which it is asked."""

    def __init__(self, name, order, turns=()):
        self.name, self.weight_bytes, self.logits = name, 100_000_000, np.zeros(3, np.float32)
        self.order, self.turns = order, iter(turns)

    def turn(self, task):
        self.order.append(self.name)
        return next(self.turns, Turn(1.0, 1.0))


def test_the_model_has_220_million_weights_beside_its_embeddings():
    """q and o 1024 x 1024, k and v 512 x 1024, gate, up and down 4096 x 1024, 12 times; the head 32768 x 1024."""
    shapes = read_architecture(config()).shapes
    layer = 2 * 1024 * 1024 + 2 * 512 * 1024 + 3 * 4096 * 1024 + 2 * 1024 + 2 * 64
    weights = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    assert sum(weights.values()) == 12 * layer + 1024 + 2 * 32768 * 1024
    assert sum(weights.values()) - weights["model.embed_tokens.weight"] == pytest.approx(222e6, rel=0.01)


def test_bytes_a_token_leave_out_the_embeddings(exported):
    """The reader in 4 bits: the file's tensors but 512 x 256 embeddings of two bytes."""
    folder = exported("w4")
    data = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        data += path.stat().st_size - 8 - header
    assert weight_bytes(folder) == data - 512 * 256 * 2


def test_table_and_ratios():
    """Medians of rounds, ratios within them, and 100 MB a token at 200 tokens/s of 40 GB/s."""
    ours = [Turn(400, 200), Turn(500, 210), Turn(300, 190)]
    theirs = [Turn(200, 100), Turn(500, 210), Turn(200, 190)]
    rows = [Clockwork("ours", []), Clockwork("theirs", [])]
    assert table(rows, [ours, theirs], 40e9) == [
        HEADER,
        "| ours | 100 | 400 | 200 | 50% | – | – |",
        "| theirs | 100 | 200 | 190 | 48% | 1.50 (1.25–1.75) | 1.00 (1.00–1.50) |",
    ]
    assert ratio(theirs, ours, "prompt") == "0.67 (0.58–0.83)"


def test_rows_take_turns_in_another_order_each_round():
    order: list[str] = []
    rows = [Clockwork("a", order, [Turn(0, 0), Turn(1, 2), Turn(3, 4)]), Clockwork("b", order)]
    turns, bandwidth = measure(rows, Task([1, 2], 3), 2, Memory(1))
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert turns == [[Turn(1, 2), Turn(3, 4)], [Turn(1, 1), Turn(1, 1)]]
    assert 1e9 < bandwidth < 1e12


def test_rates_count_the_first_token_with_the_prompt():
    assert rates(Task([0] * 256, 128), 0.5, 1.0) == Turn(512.0, 127.0)


def test_our_turn_is_the_command_s_answer(exported):
    """Random ids that the reader answers with several tokens; the kept logits are those after the prompt."""
    folder = exported("w4")
    model = Model(folder, "cpu")
    drawn = (np.random.default_rng(seed).integers(100, 500, 20) for seed in range(50))
    prompts = (Prompt(ids, model.embed_tokens(ids)) for ids in drawn)
    answers = ((prompt, len(list(generate(model, prompt, greedy, 6)))) for prompt in prompts)
    prompt, length = next(answer for answer in answers if answer[1] > 1)
    ids = prompt.ids
    ours = Ours("ours", folder, 1)
    turn = ours.turn(Task(ids.tolist(), length))
    assert min(turn.prompt, turn.decode) > 0
    logits = prefill(model, model.decoder.new_cache(len(prompt.ids)), prompt)
    np.testing.assert_array_equal(ours.logits, logits)
    if length < 6:
        with pytest.raises(InputError, match="another --seed"):
            ours.turn(Task(ids.tolist(), 6))
