"""`export --block-size 32`: the same weights and results in blocks that ONNX Runtime's CUTLASS kernels take."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export import verify
from export.modules.linear import Linear
from export.modules.products import EXACT
from export.modules.weights import Source
from export.onnx_graph import trace
from quantize.checkpoint.reader import open_checkpoint
from runtime.decoding.forward import decode
from runtime.inputs.vision import vision_feeds
from runtime.model import Model
from runtime.ort.manifest import load_manifest

from .test_graphs import external

pytestmark = pytest.mark.slow

GRAPHS = ("decoder.cpu.onnx", "vision.cpu.onnx", "mtp.cpu.onnx")
SAME = 1e-6  # relative to the largest value


@pytest.fixture(scope="module")
def in_blocks(exported):
    """The 4-bit reader, whose groups have 128 weights, exact on the CPU in blocks of 32."""
    return exported("w4", block_size=32)


def products(path):
    """Block sizes of the products of a graph, by the name of their weights."""
    graph = onnx.load(path, load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    return {node.input[1]: next(a.i for a in node.attribute if a.name == "block_size") for node in nodes}


def operators(path, tmp_path):
    """Nodes that are left when ONNX Runtime has loaded a graph."""
    settings = ort.SessionOptions()
    settings.optimized_model_filepath, settings.log_severity_level = str(tmp_path / "optimized.onnx"), 4
    ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "optimized.onnx", load_external_data=False)
    return Counter(node.op_type for node in loaded.graph.node)


def test_every_product_but_the_heads_has_blocks_of_32(in_blocks, exported):
    assert load_manifest(in_blocks).targets["cpu"].block_size == 32
    assert load_manifest(exported("w4")).targets["cpu"].block_size is None
    for graph in GRAPHS:
        sizes, stored = products(in_blocks / graph), products(exported("w4") / graph)
        assert set(stored.values()) == {128}
        assert sizes == {name: 128 if name.startswith("head.") else 32 for name in stored}


def test_the_bytes_are_those_stored(in_blocks, exported):
    """The same spans of the same file, and little more in the graphs."""
    for graph in GRAPHS:
        ours, theirs = (
            {(file, offset, length) for _, file, offset, length in external(folder / graph)}
            for folder in (in_blocks, exported("w4"))
        )
        assert ours == theirs
        assert (in_blocks / graph).stat().st_size < (exported("w4") / graph).stat().st_size + 20_000
    assert {path.name for path in in_blocks.iterdir()} == {path.name for path in exported("w4").iterdir()}


def test_repeated_scales_are_folded_as_a_graph_loads(in_blocks, exported, tmp_path):
    for graph in GRAPHS:
        assert operators(in_blocks / graph, tmp_path) == operators(exported("w4") / graph, tmp_path)


def test_logits_and_embeddings_are_those_of_stored_groups(in_blocks, exported):
    found, expected = [], []
    for folder, values in ((in_blocks, found), (exported("w4"), expected)):
        model = Model(folder, "cpu")
        embeds, cache = model.embed_tokens(np.arange(100, 250)), model.decoder.new_cache(200)
        values.append(decode(model, cache, embeds[:149], np.arange(149)).logits)
        values.append(decode(model, cache, embeds[149:], np.array([0])).logits)
        patches = np.random.default_rng(0).normal(size=(120, 1176)).astype(np.float32)
        values.append(model.vision.run(vision_feeds(patches, [(1, 12, 10)], model.manifest.vision)))
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= SAME * np.abs(theirs).max()


def test_verify_knows_them(in_blocks):
    assert verify(in_blocks, "cpu").passed


# Rows, bits and group of a linear, and the blocks of its product.
BLOCKS = [
    (64, 4, 128, 32),
    (64, 4, 64, 32),
    (32, 4, 128, 128),  # CUTLASS takes 64 rows at a time
    (96, 4, 128, 128),
    (32, 8, 128, 32),
    (48, 8, 128, 128),
    (64, 4, 32, 32),
    (64, 4, 16, 16),
]


def packed_linears(folder):
    """A checkpoint of the packed linears of BLOCKS, named x0, x1 and so on, of 256 inputs each."""
    from safetensors.torch import save_file

    folder.mkdir()
    random, tensors = torch.Generator().manual_seed(0), {}
    for place, (rows, bits, group, _) in enumerate(BLOCKS):
        packed = torch.randint(-(2**31), 2**31, (rows, 256 * bits // 32), generator=random).int()
        scales = (torch.rand(rows, 256 // group, generator=random) / 100).half()
        parts = {"packed": packed, "scale": scales, "shape": torch.tensor([rows, 256])}
        tensors |= {f"x{place}.weight_{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return open_checkpoint(folder)


class SideBySide(torch.nn.Module):
    """Linears that read the same input, in one graph: a trace takes as long for one as for all."""

    def __init__(self, linears):
        super().__init__()
        self.linears = torch.nn.ModuleList(linears)

    def forward(self, x):
        return tuple(linear(x)[0] for linear in self.linears)


def test_what_does_not_fit_stays_as_stored(tmp_path):
    checkpoint, x = packed_linears(tmp_path / "folder"), torch.randn(3, 256)
    stored, linears = (
        [Linear(Source(checkpoint, load=True, block_size=size), f"x{place}") for place in range(len(BLOCKS))]
        for size in (None, 32)
    )
    for linear, expected in zip(linears, stored, strict=True):
        torch.testing.assert_close(linear(x)[0], expected(x)[0], rtol=SAME, atol=SAME)
    outputs = [f"y{place}" for place in range(len(BLOCKS))]
    model = trace(SideBySide(linears), [x], [{0: "rows"}], ["x"], outputs)
    products = {node.outputs[0].name: node.attributes for node in model.graph if node.op_type == "MatMulNBits"}
    found = {name: attributes["block_size"].as_int() for name, attributes in products.items()}
    assert found == {name: block for name, (*_, block) in zip(outputs, BLOCKS, strict=True)}
    assert {attributes["accuracy_level"].as_int() for attributes in products.values()} == {EXACT}


ON_CUDA = """
import json, sys
from pathlib import Path
import numpy as np
from traffic import DeviceMemory
from runtime.model import Model
from runtime.ort.sessions import Options, placement

model = Model(Path(sys.argv[1]), "cuda", Options(profile=Path(sys.argv[2])))
with DeviceMemory() as loading:
    model.open_sessions()
embeds, cache = model.embed_tokens(np.arange(100, 200)), model.decoder.new_cache(200)
model.decoder.run(cache, embeds[None], np.array([[99]]))
session = model.decoder._session
names = ("ep.cuda.fpa_intb_gemm", "ep.cuda.fpa_intb_profile_m", "session.use_device_allocator_for_initializers")
options = [session.get_session_options().get_session_config_entry(name) for name in names]
print(json.dumps([options, loading.peak, loading.kept, placement(session)]))
"""


def test_a_gpu_keeps_one_copy_and_measures_the_kernels(exported, cuda_stub, tmp_path):
    """In bfloat16. ONNX Runtime repacks the weights and times its kernels on the stand-in, whose clock never moves."""
    folder = exported("bf16", "cuda", block_size=32)
    options, peak, held, nodes = cuda_stub.run(ON_CUDA, folder, tmp_path)
    assert options == ["1", "1,2,4,8,16,32,1024,4096", "1"]
    assert {provider for _, provider in nodes} == {"CUDAExecutionProvider"}
    assert Counter(operator for operator, _ in nodes)["MatMulNBits"] == 17
    assert not {"Concat", "Expand", "Gather"} & {operator for operator, _ in nodes}
    widest = 1536  # rows of gate and up
    assert peak > held + 4096 * widest * 2
    layers, rest = "model.language_model.layers.", ("model.language_model.norm.", "lm_head.")
    stored = [t for t in open_checkpoint(folder).tensors.values() if t.name.startswith((layers, *rest))]
    repeated = [t.nbytes for t in stored if t.name.startswith(layers) and t.name.endswith("_scale")]
    assert held == pytest.approx(sum(t.nbytes for t in stored) + 3 * sum(repeated), rel=0.01)
