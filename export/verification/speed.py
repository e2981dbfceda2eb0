"""Decoding speed of a target, and the memory it uses."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from export.verification.gpu import read_gpu
from export.verification.inputs import TOKENS
from quantize.report import peak_mib

if TYPE_CHECKING:
    from export.verification.graphs import Graphs

_TOKENS, _SECONDS = 64, 10.0  # decode until either is reached


def measure(graphs: Graphs) -> tuple[float, float | None]:
    """Decode single tokens after a prompt; returns tokens per second and MiB in use (see `Verification`)."""
    decoder = graphs.decoder(graphs.open(graphs.target.decoder, profile=False))
    cache = decoder.new_cache(TOKENS + _TOKENS)
    first = np.zeros((1, 1), np.int64)
    decoder.run(cache, graphs.embeds[None, :TOKENS], first)
    decoder.run(cache, graphs.embeds[None, :1], first)  # the first step makes its buffers
    done, seconds, started = 0, 0.0, time.perf_counter()
    while done < _TOKENS - 1 and seconds < _SECONDS:
        decoder.run(cache, graphs.embeds[None, :1], first)
        done, seconds = done + 1, time.perf_counter() - started
    # Before the session ends: ONNX Runtime keeps GPU memory until then.
    on_gpu = graphs.device.kind == "cuda"
    return done / seconds, read_gpu(graphs.device.index).used / 2**20 if on_gpu else peak_mib()
