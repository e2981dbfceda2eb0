"""Time and memory of quantizing one decoder layer of the released widths; the time for all layers by multiplication."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.gpu.figures import Figure
from bench.gpu.folders import Shape
from bench.gpu.memory import PeakMemory
from bench.scale import quantize as scale
from bench.scale.folders import RELEASED, make_checkpoint
from calib_data import READER
from console.files import read_object

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.gpu.bench import Bench

DOCUMENTS, DOCUMENTS_TINY = 128, 4
LAYER = "model.language_model.layers"


def measure(bench: Bench) -> Iterator[Figure]:
    """Quantize one layer with the command itself."""
    model, documents = bench.scratch / "one-layer", DOCUMENTS_TINY if bench.tiny else DOCUMENTS
    make_checkpoint(one_layer(tiny=bench.tiny), model)
    with PeakMemory(bench) as memory:
        output = bench.scratch / "one-layer-w4"
        run = scale.quantize(model, output, 1, documents, device=bench.device)
    for step in run.steps:
        note = f"{run.documents} documents, {run.tokens} tokens" if step.name.startswith(LAYER) else ""
        yield Figure(f"step {step.name}", step.seconds, "s", note=note)
    yield Figure("peak memory of the process", run.peak / 2**10, "GiB")
    if bench.on_gpu:
        yield Figure("peak memory of the GPU", memory.bytes / 2**30, "GiB")
    layers = read_object(RELEASED)["text_config"]["num_hidden_layers"]
    seconds = run.mean_seconds()[LAYER]
    yield Figure(f"{layers} decoder layers", layers * seconds / 3600, "hours", note="multiplied, not measured")


def one_layer(*, tiny: bool) -> dict[str, Any]:
    """Raw config.json of one decoder layer of the released widths, with a small vocabulary and no MTP layer."""
    config = Shape(1, 1, narrow=tiny).config()
    text, reader = config["text_config"], read_object(READER / "config.json")["text_config"]
    text |= {"vocab_size": reader["vocab_size"], "num_nextn_predict_layers": 0}
    text["layer_types"] = text["layer_types"][:1]
    return config
