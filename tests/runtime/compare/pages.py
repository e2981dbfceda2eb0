"""Comparisons made from given answers with the project's own scores."""

import numpy as np
from PIL import Image

from calib_data.document import Document
from calib_data.scores import anls, character_error_rate, exact_match
from runtime.compare.gate import Gates
from runtime.compare.measuring.measure import first_change
from runtime.compare.result import Comparison, Cost, Difference, DocumentResult, Layer, ModelResult
from runtime.compare.summary import summarize_baseline, summarize_candidate
from runtime.evaluate import Scored

ABOUT = {
    "source": "rendered",
    "kind": None,
    "seed": 0,
    "device": "cpu",
    "date": "2026-01-02",
    "machine": "x86_64",
    "control_tokens": {"reasoning_end": [72], "turn_end": [53], "tool_call": []},
    "versions": {"onnxruntime": "1.31.1", "python": "3.11.7"},
}
COST = Cost(weights=4.0, kv_cache_at_4096=8.0, resident=3.0, tokens_per_second=100.0)
LAYERS = [Layer(f"model.layers.{n}.mlp.down_proj", 4, 0.1 + n / 100, 0.001, 0.003, suspect=False) for n in range(12)]


def scored(name, truth, answer, finished=True):
    ids = [ord(char) for char in answer]
    numbers = exact_match(answer, truth), character_error_rate(answer, truth), anls(answer, [truth])
    return Scored(name, truth, answer, ids, 0.5, finished, *numbers)


def measured(name, truth, baseline, *answers, kl=None, prompt="Read the text."):
    """One document. baseline: None for a reference. kl: of each candidate, the same at every token."""
    kl = kl or [0.001] * len(answers)
    length = len(truth) + 1
    own = None if baseline is None else scored(name, truth, baseline)
    others = [scored(name, truth, answer) for answer in answers]
    return DocumentResult(
        name,
        prompt,
        truth,
        {"turn_end": [length - 1]},
        ModelResult(own, [-0.1] * length, [1] * length),
        [ModelResult(other, [-0.2] * length, [2] * length) for other in others],
        [Difference([kl[n]] * length, [True] * length, first_change(own, other)) for n, other in enumerate(others)],
    )


def comparison(documents, *names, baseline="fp16", gates=None, layers=LAYERS):
    has_answers = documents[0].baseline.scored is not None
    return Comparison(
        ABOUT | {"count": len(documents), "graphs": ["float32 activations"] * (len(names) + 1)},
        summarize_baseline(baseline, documents, COST if has_answers else None),
        [
            summarize_candidate(name, number, documents, gates or Gates(), cost=COST, layers=layers)
            for number, name in enumerate(names)
        ],
    )


def pictures(documents, size=(1200, 300)):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    return [Document(image, one.prompt, one.truth, one.name) for one in documents]
