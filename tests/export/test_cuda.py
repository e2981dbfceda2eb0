"""The CUDA graphs on a stand-in device: where every node runs, and what crosses between host and device in a step."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from calib_data.errors import InputError
from export.graphs import export_folder
from runtime.generate import Model

RUN = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime as ort
from traffic import Traffic, placement
from runtime.generate import Model, vision_feeds
from runtime.sessions import DecoderSession, VisionSession

folder, prefix = Path(sys.argv[1]), sys.argv[2]
model = Model(folder, "cuda")
text, target = model.bundle.text, model.target

def profiled(graph):
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, prefix
    return ort.InferenceSession(folder / graph, options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])

def prompt_and_step(decoder):
    embeds = model.embed_tokens(np.arange(100, 200))
    cache = decoder.new_cache(200)
    decoder.run(cache, embeds, np.array([99]))
    with Traffic() as step:
        logits = decoder.run(cache, embeds[:1], np.array([0]))
    return step.counts, logits.shape

decoder = profiled(target.decoder)
prompt_and_step(DecoderSession(decoder, text, target.dtype, "cuda"))
vision = profiled(target.vision)
embeds = VisionSession(vision).run(vision_feeds(np.zeros((120, 1176), np.float32), [(1, 12, 10)], model.bundle.vision))
counts, shape = prompt_and_step(model.decoder)
print(json.dumps({"decoder": placement(decoder), "vision": placement(vision), "step": counts,
                  "logits": shape, "embeds": embeds.shape, "dtype": target.dtype}))
"""


@pytest.fixture(scope="module")
def on_cuda(quantized: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Readers with CUDA graphs only, by the names of `quantized`."""

    @cache
    def folder(name: str) -> Path:
        to = tmp_path_factory.mktemp("cuda") / name
        shutil.copytree(quantized(name), to, ignore=shutil.ignore_patterns("*.onnx", "runtime.json"))
        export_folder(to, "cuda")
        return to

    return folder


@pytest.mark.parametrize(
    ("name", "dtype"), [("w4", "float16"), ("bf16", "bfloat16"), ("nf4", "float16"), ("fp16", "float16")]
)
def test_every_node_is_on_the_device_and_only_a_token_moves(name, dtype, cuda_stub, on_cuda, tmp_path):
    result = cuda_stub.run(RUN, on_cuda(name), tmp_path / "profile")
    assert result["dtype"] == dtype
    for graph in ("decoder", "vision"):
        operators = dict(result[graph])
        assert {provider for _, provider in result[graph]} == {"CUDAExecutionProvider"}, graph
        assert not any("Memcpy" in operator for operator in operators)
        assert "GroupQueryAttention" in operators
    assert (result["logits"], result["embeds"]) == ([1, 512], [30, 256])
    embedded_token, lengths, index, logits = 256 * 2, 4, 8, 512 * 4
    levels = 16 * 16 * 2 if name == "nf4" else 0  # MatMulBnb4 sends its 16 levels along, in each of 16 products
    assert result["step"]["bytes_to_device"] == embedded_token + lengths + index + levels
    # Attention reads a length per layer back; the KV cache never moves.
    assert result["step"]["bytes_to_host"] <= logits + 4 * lengths


def test_cuda_without_a_driver_is_one_line(on_cuda):
    folder = on_cuda("w4")
    with pytest.raises(InputError, match="use --device cpu"):
        Model(folder, "cuda")
    with pytest.raises(InputError, match="--target cpu"):
        Model(folder, "cpu")
