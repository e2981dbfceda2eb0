"""`export --kv-layout full`: buffers of sliding layers as long as all others, the same answers, nothing to put back."""

import numpy as np
import onnx
import pytest

from calib_data.sources import open_documents
from export import verify
from runtime.compare.measuring.models import Models
from runtime.decoding.drafts import Drafts
from runtime.decoding.forward import decode
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.model import Model
from runtime.ort.manifest import load_manifest
from runtime.prompt import Prompt, build_prompt
from runtime.sizes import buffer_limits

SAME = 2e-6  # relative to the largest logit: sums over keys in another order
TOKENS = 210  # more than three windows of the reader


@pytest.fixture(scope="module")
def full_folder(exported):
    """The 4-bit reader with full buffers, exact on the CPU."""
    return exported("w4", kv_layout="full")


@pytest.fixture(scope="module")
def both(full_folder, exported):
    """The reader with full buffers, and with those of windows."""
    return Model(full_folder, "cpu"), Model(exported("w4"), "cpu")


def assert_same(found, expected):
    assert np.abs(found - expected).max() < SAME * np.abs(expected).max()


def test_limits_of_buffers():
    assert buffer_limits([64, None], "window") == [64, None]
    assert buffer_limits([64, None], "full") == [None, None]


def test_every_buffer_has_all_the_capacity_and_none_is_rewound(full_folder, both):
    target = load_manifest(full_folder).targets["cpu"]
    assert (target.kv_layout, target.rewind, target.mtp_rewind) == ("full", None, None)
    assert not list(full_folder.glob("*rewind*"))
    full, window = both
    assert window.target.kv_layout == "window"
    for session in (full.decoder, full.drafter.session):
        assert {buffer.shape[2] for buffer in session.new_cache(300).buffers} == {300}
    assert {buffer.shape[2] for buffer in window.decoder.new_cache(300).buffers} == {300, 64}
    assert full.manifest.text.windows == window.manifest.text.windows == [64, None, 64, None]


def test_compare_reports_the_bytes_of_full_buffers(full_folder):
    """It once reported those of windows."""
    (cost,) = Models(full_folder, (), "cpu").load().costs
    text = load_manifest(full_folder).text
    assert cost.kv_cache_at_4096 * 2**20 == 4 * 2 * text.kv_heads * 4096 * text.head_dim * 4


def test_layers_still_have_their_windows(full_folder):
    for graph, windows in (("decoder.cpu.onnx", [64, None, 64, None]), ("mtp.cpu.onnx", [64])):
        nodes = onnx.load(full_folder / graph, load_external_data=False).graph.node
        attention = [{a.name: a.i for a in n.attribute} for n in nodes if n.op_type == "GroupQueryAttention"]
        assert [attributes.get("local_window_size") for attributes in attention] == windows
        assert not any(attributes.get("sliding_window_cache") for attributes in attention)


@pytest.mark.parametrize("calls", [[TOKENS], [64, 65, 81], [100, 7, 3, *[1] * 100]])
def test_logits_are_those_of_window_buffers(calls, both):
    found, expected = [], []
    for model, logits in zip(both, (found, expected), strict=True):
        embeds, cache, at = model.embed_tokens(np.arange(TOKENS) + 100), model.decoder.new_cache(TOKENS + 9), 0
        for tokens in calls:
            logits.append(decode(model, cache, embeds[at : at + tokens], np.arange(tokens)).logits[0])
            at += tokens
        assert at == TOKENS
    assert_same(np.concatenate(found), np.concatenate(expected))


def test_a_batch_of_sequences_of_unequal_length(both):
    found, expected = [], []
    for model, logits in zip(both, (found, expected), strict=True):
        embeds, cache = model.embed_tokens(np.arange(TOKENS) + 100), model.decoder.new_cache(TOKENS + 9, batch=3)
        for row, tokens in enumerate((20, TOKENS, 64)):
            logits.append(decode(model, cache.row(row), embeds[:tokens], np.array([tokens - 1])).logits[0])
        for at in range(8):
            step = np.stack([embeds[at + row][None] for row in range(3)])
            logits.extend(model.decoder.run(cache, step, np.zeros((3, 1), np.int64)).logits)
    assert_same(np.stack(found), np.stack(expected))


def test_drafts_change_no_answer(both):
    """Rejected ones are forgotten by a smaller length."""
    full, window = both
    assert full.drafter.decoder_rollback.window is full.drafter.mtp_rollback.window is None
    rejected = 0
    for document in open_documents("rendered", split="evaluation", count=3, seed=2):
        prompt, drafts = build_prompt(full, document.prompt, [document.image]), Drafts(3)
        expected = list(generate(window, prompt, greedy, 200))
        assert list(generate(full, prompt, greedy, 200)) == expected
        assert list(generate(full, prompt, greedy, 200, drafts)) == expected
        rejected += drafts.drafted - drafts.accepted
    assert rejected > 0


def test_an_answer_behind_three_windows(both):
    full, window = both
    ids = np.random.default_rng(0).integers(80, 500, TOKENS)
    prompt = Prompt(ids, full.embed_tokens(ids))
    assert list(generate(full, prompt, greedy, 40, Drafts(3))) == list(generate(window, prompt, greedy, 40))


def test_verify_knows_them_and_an_int8_cache(full_folder, exported):
    assert [check.graph for check in verified(full_folder).checks] == [
        "vision.cpu.onnx",
        "decoder.cpu.onnx",
        "mtp.cpu.onnx",
    ]
    assert "int8 KV cache" in verified(exported("w4", kv_bits=8, kv_layout="full")).about


def verified(folder):
    verification = verify(folder, "cpu")
    assert verification.passed
    return verification


ON_CUDA = """
import json, sys
from pathlib import Path
import numpy as np
from runtime.decoding.generate import generate
from runtime.model import Model
from runtime.prompt import Prompt
from runtime.ort.sessions import Options, placement
from runtime.decoding.drafts import Drafts

model = Model(Path(sys.argv[1]), "cuda", Options(profile=Path(sys.argv[2])))
ids = np.arange(100, 250)
prompt = Prompt(ids, model.embed_tokens(ids))
tokens = list(generate(model, prompt, lambda logits, generated: 100, 6, Drafts(2)))
sessions = (model.decoder, model.drafter.session)
rows = [sorted({buffer.shape[2] for buffer in session.new_cache(300).buffers}) for session in sessions]
print(json.dumps([len(tokens), rows, [placement(session._session) for session in sessions]]))
"""


def test_every_node_is_on_the_gpu(exported, cuda_stub, tmp_path):
    folder = exported("w4", "cuda", kv_layout="full")
    tokens, rows, placed = cuda_stub.run(ON_CUDA, folder, tmp_path)
    assert (tokens, rows) == (6, [[300], [300]])
    for nodes in placed:
        assert {provider for _, provider in nodes} == {"CUDAExecutionProvider"}
        assert not any("Memcpy" in operator for operator, _ in nodes)
