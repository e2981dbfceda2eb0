"""How much memory a KV cache takes, how long its buffers are, and how long what is bound to them lives."""

import weakref

import numpy as np


def test_buffers_take_the_bytes_of_the_formula(reader):
    cache = reader.decoder.new_cache(capacity=300, batch=2)
    text = reader.manifest.text
    held = sum(buffer.read().nbytes for buffer in cache.buffers)
    rows = sum(300 if window is None else window for window in text.windows)
    assert held == reader.decoder.cache_bytes(capacity=300, batch=2) == 2 * 2 * text.kv_heads * rows * text.head_dim * 4


def test_bindings_die_with_their_cache(reader):
    """They hold the memory of embeddings, logits and hidden states on the device."""
    session, embeds, one = reader.decoder, np.zeros((1, 1, 256), np.float32), np.array([[0]])
    before, cache = len(session.bindings), session.new_cache(20, batch=2)
    row = cache.row(1)
    session.run(row, embeds, one)
    session.run(cache, np.repeat(embeds, 2, 0), one.repeat(2, 0))
    assert session.bindings[row][1, 1] is not session.bindings[cache][1, 1]
    logits = weakref.ref(session.bindings[row][1, 1].logits)
    del row
    assert logits() is None
    del cache
    assert len(session.bindings) == before


def test_two_sessions_bind_a_cache_for_themselves(reader):
    """A new session at the address of a freed one once used its bindings."""
    session = reader.drafter.session
    cache = session.new_cache(20)
    hidden = reader.decoder.run(reader.decoder.new_cache(20), np.zeros((1, 1, 256), np.float32), np.array([[0]])).hidden
    session.run(cache, np.zeros((1, 1, 256), np.float32), np.array([[0]]), hidden)
    assert cache in session.bindings
    assert cache not in reader.decoder.bindings
