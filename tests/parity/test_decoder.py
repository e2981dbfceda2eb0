"""Parity of decoder and MTP layer: transformers or training, the PyTorch modules, ONNX Runtime."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Exaone4Config,
    Exaone4ForCausalLM,
)

from calib_data import READER
from export import export
from export.modules.decoder import Decoder
from export.modules.mtp import Mtp
from export.modules.weights import Source
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import find_family, model_config
from runtime.decoding.forward import decode
from runtime.model import Model
from runtime.ort.buffer import Buffer
from runtime.ort.decoder import DecoderSession
from runtime.ort.device import Device
from runtime.ort.rope import rope_tables
from runtime.ort.sessions import open_session
from training.forward import Reader, masks, mtp

from .references import CACHED, EAGER, ONNX, eager, relative_error

pytestmark = pytest.mark.slow


def run_eager(decoder: Decoder, model: Model, embeds: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] of all positions of embeds [T, H], in one call over empty buffers."""
    tokens, text = len(embeds), model.manifest.text
    cos, sin = (torch.from_numpy(table) for table in rope_tables(text.rope, tokens))
    past = [torch.zeros(1, text.kv_heads, window or tokens, text.head_dim) for window in text.windows for _ in range(2)]
    last, total = torch.tensor([tokens - 1], dtype=torch.int32), torch.tensor(tokens, dtype=torch.int32)
    return decoder(embeds[None], last, total, torch.arange(tokens)[None], cos, sin, past)[0][0]


@torch.no_grad()
def test_decoder_transformers_eager_onnx(reference, exported):
    ids = torch.randint(80, 500, (150,), generator=torch.Generator().manual_seed(1))  # more than two windows
    expected = reference(input_ids=ids[None]).logits[0]
    model = Model(exported("fp16"), "cpu")
    embeds = model.embed_tokens(ids.numpy())
    in_eager = run_eager(eager(exported("fp16"))[0], model, torch.from_numpy(embeds))
    assert relative_error(in_eager, expected) < EAGER
    logits = decode(model, model.decoder.new_cache(len(ids)), embeds, np.arange(len(ids))).logits[0]
    assert relative_error(logits, in_eager) < ONNX


@pytest.mark.parametrize("steps", [(150,), (64, 86), (65, 1, 1, 1, 40, 1, 41), (1,) * 150])
def test_cached_is_uncached(steps, reference, exported):
    """Prompt, chunks and single tokens in any mixture give the logits of one full forward, past the window too."""
    model = Model(exported("fp16"), "cpu")
    ids = np.random.default_rng(2).integers(80, 500, sum(steps))
    with torch.no_grad():
        expected = reference(input_ids=torch.from_numpy(ids)[None]).logits[0]
    embeds, cache, start, logits = model.embed_tokens(ids), model.decoder.new_cache(len(ids)), 0, []
    for step in steps:
        logits.append(decode(model, cache, embeds[start : start + step], np.arange(step)).logits[0])
        start += step
    assert relative_error(np.concatenate(logits), expected) < CACHED


def test_ragged_batch_is_three_models(reference, exported):
    """Prompts shorter and longer than the window, whole and in chunks, each into its row; then steps of all three."""
    model, steps = Model(exported("fp16"), "cpu"), 80
    random, prompts = np.random.default_rng(4), [(20,), (193,), (64, 1, 64, 100)]
    ids = [random.integers(80, 500, sum(chunks) + steps) for chunks in prompts]
    cache = model.decoder.new_cache(max(map(len, ids)), batch=3)
    found: list[list[np.ndarray]] = [[] for _ in ids]
    for row, chunks in enumerate(prompts):
        start = 0
        for tokens in chunks:
            embeds = model.embed_tokens(ids[row][start : start + tokens])
            found[row].append(decode(model, cache.row(row), embeds, np.arange(tokens)).logits[0])
            start += tokens
    for step in range(steps):
        embeds = model.embed_tokens(np.array([row[len(row) - steps + step] for row in ids]))
        logits = model.decoder.run(cache, embeds[:, None], np.zeros((3, 1), np.int64)).logits
        for row in range(3):
            found[row].append(logits[row])
    assert cache.lengths.tolist() == [100, 273, 309]
    for row, logits in zip(ids, found, strict=True):
        with torch.no_grad():
            expected = reference(input_ids=torch.from_numpy(row)[None]).logits[0]
        assert relative_error(np.concatenate(logits), expected) < CACHED


@torch.no_grad()
def test_mtp_training_eager_onnx(exported):
    """Drafts at every position, over three windows: the layer as it was trained, as it is exported, as it runs."""
    reader = Reader()
    reader.load_state_dict({name: tensor.float() for name, tensor in load_file(READER / "model.safetensors").items()})
    model, tokens = Model(exported("fp16"), "cpu"), 200
    embeds = torch.randn(2, tokens, 256, generator=torch.Generator().manual_seed(3))  # of tokens, and hidden states
    expected = reader.lm_head(mtp(reader, embeds[:1], embeds[1:], masks(reader, tokens)))[0]
    checkpoint = open_checkpoint(exported("fp16"))
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    layer, text = Mtp(Source(checkpoint, load=True), family, config), model.manifest.text
    cos, sin = (torch.from_numpy(table) for table in rope_tables(text.rope, tokens))
    past = [torch.zeros(1, text.kv_heads, 64, text.head_dim) for _ in range(2)]
    last, total = torch.tensor([tokens - 1], dtype=torch.int32), torch.tensor(tokens, dtype=torch.int32)
    in_eager, hidden, *_ = layer(embeds[:1], embeds[1:], last, total, torch.arange(tokens)[None], cos, sin, past)
    assert relative_error(in_eager[0], expected) < EAGER
    session = model.drafter.session
    cache, start, logits = session.new_cache(tokens), 0, []
    for step in (70, 1, 100, 29):
        part = embeds[:, start : start + step].numpy()
        previous = Buffer.from_array(part[1:], "float32", Device("cpu"))
        decoded = session.run(cache, part[:1], np.arange(step)[None], previous)
        logits.append(decoded.logits[0])
        start += step
    assert relative_error(np.concatenate(logits), in_eager[0]) < CACHED
    assert relative_error(decoded.hidden.read(), hidden[:, -29:]) < CACHED


@torch.no_grad()
def test_rope_is_on_every_layer_of_a_model_without_a_window(tmp_path):
    config = Exaone4Config(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=None, layer_types=["full_attention"] * 3, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    reference = Exaone4ForCausalLM(config).eval()
    reference.save_pretrained(tmp_path)
    ids = torch.randint(96, (40,))
    expected = reference(input_ids=ids[None]).logits[0]
    described = export(tmp_path, "cpu")
    text = described.text
    assert (text.windows, text.mtp_windows) == ([None] * 3, [])
    session = open_session(tmp_path / "decoder.cpu.onnx", Device("cpu"))
    decoder = DecoderSession(session, text, described.targets["cpu"], Device("cpu"), {})
    embeds = reference.get_input_embeddings()(ids)[None].numpy()
    found = decoder.run(decoder.new_cache(40), embeds, np.arange(40)[None])
    assert relative_error(found.logits[0], expected) < ONNX
    assert found.hidden is None
    checkpoint = open_checkpoint(tmp_path)
    eager_decoder = Decoder(Source(checkpoint, load=True), find_family(checkpoint.config), config)
    for layer in eager_decoder.layers:
        layer.attention.has_rope = False
    past = [torch.zeros(1, 2, 40, 16) for _ in range(6)]
    last, total, rope = torch.tensor([39]), torch.tensor(40), map(torch.from_numpy, rope_tables(text.rope, 40))
    wrong = eager_decoder(torch.from_numpy(embeds), last, total, torch.arange(40)[None], *rope, past)[0][0]
    assert relative_error(wrong, expected) > 100 * ONNX


@torch.no_grad()
def test_rope_is_on_sliding_layers_only(reference, exported):
    """The test above is sensitive to it: with RoPE on every layer the logits are far away."""
    decoder, _ = eager(exported("fp16"))
    assert [layer.attention.has_rope for layer in decoder.layers] == [True, False, True, False]
    for layer in decoder.layers:
        layer.attention.has_rope = True
    ids = torch.randint(80, 500, (100,), generator=torch.Generator().manual_seed(1))
    model = Model(exported("fp16"), "cpu")
    wrong = run_eager(decoder, model, torch.from_numpy(model.embed_tokens(ids.numpy())))
    assert relative_error(wrong, reference(input_ids=ids[None]).logits[0]) > 100 * EAGER
