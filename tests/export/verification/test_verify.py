"""`python -m export verify`: every kind of folder passes, and damage of every kind does not."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch

from console.errors import InputError
from export import export
from export.modules.weights import Stored
from export.verification.verify import EXACT, INT8_ACTIVATIONS, INT8_KV, VISION, verify
from quantize.checkpoint.reader import open_checkpoint

from ...cuda_stub.build import CudaStub
from ..test_command import assert_one_line, run

DECODER, VISION_GRAPH, MTP = "decoder.cpu.onnx", "vision.cpu.onnx", "mtp.cpu.onnx"
REWINDS = ["rewind.cpu.onnx", "mtp_rewind.cpu.onnx"]
PRODUCTS = {"w4": "MatMulNBits", "w8": "MatMulNBits", "bf16": "MatMulNBits", "nf4": "MatMulBnb4", "fp16": "FusedMatMul"}


@pytest.mark.parametrize("name", PRODUCTS)
def test_folders_of_every_kind_pass(name, exported):
    found = verify(exported(name), "cpu")
    assert found.passed
    assert [rung.graph for rung in found.rungs] == [VISION_GRAPH, DECODER, MTP, *REWINDS]
    assert [rung.tolerance for rung in found.rungs] == [VISION, *[EXACT] * 4]
    assert [rung.error > 0 for rung in found.rungs] == [True] * 3 + [False] * 2
    _, decoder, *_ = found.rungs
    nodes = [node.op_type for node in onnx.load(exported(name) / DECODER, load_external_data=False).graph.node]
    assert decoder.operators[PRODUCTS[name]] == nodes.count(PRODUCTS[name]) >= 4
    assert sum(decoder.operators.values()) == len(nodes)
    assert set(decoder.nodes) == {"CPU"}
    assert 40 < decoder.nodes["CPU"] < len(nodes)  # casts of stored weights are folded
    assert found.tokens_per_second > 0
    assert found.memory > 50


@pytest.fixture(scope="module")
def default(quantized, tmp_path_factory) -> Path:
    """A 4-bit folder exported as the command does by itself, with int8 activations."""
    folder = shutil.copytree(quantized("w4"), tmp_path_factory.mktemp("default") / "w4")
    export(folder, "cpu")
    return folder


def test_activations_and_caches_of_8_bits_have_a_rung_of_their_own(quantized, tmp_path):
    folder = shutil.copytree(quantized("w4"), tmp_path / "w4")
    export(folder, "cpu", kv_bits=8)
    found = verify(folder, "cpu")
    assert found.passed
    by_itself, in_float = ([rung for rung in found.rungs if rung.in_float == wanted] for wanted in (False, True))
    assert [rung.tolerance for rung in by_itself] == [*[INT8_ACTIVATIONS] * 3, EXACT, EXACT]
    assert [rung.graph for rung in in_float] == [VISION_GRAPH, DECODER, MTP]
    assert [rung.tolerance for rung in in_float] == [VISION, INT8_KV, EXACT]
    assert in_float[0].error < by_itself[0].error / 10
    assert found.about.startswith("float32 activations, int8 in packed products, int8 KV cache; ")
    export(folder, "cpu", exact=True, kv_bits=8)
    found = verify(folder, "cpu")
    assert found.passed
    assert [rung.tolerance for rung in found.rungs] == [VISION, INT8_KV, *[EXACT] * 3]
    assert "int8 KV cache" in found.about


def test_int8_activations_are_not_named_where_there_are_none(quantized, tmp_path):
    folder = shutil.copytree(quantized("nf4"), tmp_path / "nf4")
    export(folder, "cpu")
    found = verify(folder, "cpu")
    assert found.about.startswith("float32 activations, float32 KV cache; ")
    assert not any(rung.in_float for rung in found.rungs)


def test_memory_is_that_of_one_product(exported, monkeypatch):
    """Weights of the eager modules are freed as soon as they were used, so that models larger than memory fit."""
    held, largest = [0], [0]
    fill, free = Stored.fill, Stored.free

    def counted_fill(self, folder):
        fill(self, folder)
        held[0] += sum(buffer.nbytes for buffer in self.buffers())
        largest[0] = max(largest[0], held[0])

    def counted_free(self):
        held[0] -= sum(buffer.nbytes for buffer in self.buffers())
        free(self)

    monkeypatch.setattr(Stored, "fill", counted_fill)
    monkeypatch.setattr(Stored, "free", counted_free)
    assert verify(exported("w4"), "cpu").passed
    head = open_checkpoint(exported("w4")).tensors["lm_head.weight_packed"].nbytes
    assert held == [0]
    assert 0 < largest[0] < 8 * head  # the merger's first product


def damaged(folder: Path, name: str) -> Path:
    """Turn one byte in the middle of a tensor over."""
    tensor = open_checkpoint(folder).tensors[name]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.offset + tensor.nbytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 255]))
    return tensor.file


def test_a_byte_that_changed_after_export_fails(exported, tmp_path):
    """Graphs and eager modules read the same bytes and agree; that they are not those of the export is seen."""
    folder = shutil.copytree(exported("w4"), tmp_path / "w4")
    file = damaged(folder, "model.language_model.layers.2.mlp.down_proj.weight_packed")
    done = run("verify", "--model", folder)
    assert done.returncode == 1, done.stderr
    assert f"FAILS: {file} is damaged" in done.stdout
    assert done.stdout.count("FAILS") == 1


def change_graph(path: Path, change) -> None:
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save(model, path)


def move_an_initializer(graph) -> None:
    """Let one packed weight begin a row late."""
    tensor = next(t for t in graph.initializer if t.name.endswith("down.products.0.weight_packed"))
    (offset,) = (entry for entry in tensor.external_data if entry.key == "offset")
    offset.value = str(int(offset.value) + 384)


def narrow_a_window(graph) -> None:
    node = next(node for node in graph.node if node.op_type == "GroupQueryAttention")
    attribute = next(attribute for attribute in node.attribute if attribute.name == "local_window_size")
    attribute.i -= 1


def swap_the_halves_of_an_mlp(graph) -> None:
    node = next(node for node in graph.node if node.op_type == "Split" and len(node.output) == 2)
    node.output[0], node.output[1] = node.output[1], node.output[0]


def put_rows_back_behind(graph) -> None:
    """Instead of in front of what stays."""
    node = next(node for node in graph.node if node.op_type == "Concat")
    node.input[0], node.input[1] = node.input[1], node.input[0]


@pytest.mark.parametrize(
    ("graph", "change"),
    [
        (DECODER, move_an_initializer),
        (DECODER, narrow_a_window),
        (VISION_GRAPH, swap_the_halves_of_an_mlp),
        (MTP, swap_the_halves_of_an_mlp),
        (REWINDS[0], put_rows_back_behind),
        (REWINDS[1], put_rows_back_behind),
    ],
)
def test_a_graph_that_is_not_the_model_fails(graph, change, exported, tmp_path):
    folder = shutil.copytree(exported("w4"), tmp_path / "w4")
    change_graph(folder / graph, change)
    found = verify(folder, "cpu")
    assert [rung.graph for rung in found.rungs if not rung.passed] == [graph]
    assert not found.damaged
    assert not found.passed


def sharpen_attention(graph) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "scale":
                attribute.f *= 1.01


@pytest.mark.parametrize(("graph", "change"), [(DECODER, narrow_a_window), (VISION_GRAPH, sharpen_attention)])
def test_rounding_to_int8_hides_no_graph_that_is_a_little_wrong(graph, change, default, tmp_path):
    folder = shutil.copytree(default, tmp_path / "w4")
    change_graph(folder / graph, change)
    failed = {rung.name: rung.error for rung in verify(folder, "cpu").rungs if not rung.passed}
    assert f"{graph}, float32" in failed
    assert failed.keys() <= {graph, f"{graph}, float32"}
    assert failed[f"{graph}, float32"] < INT8_ACTIVATIONS


def test_the_command_names_the_graph(exported, tmp_path):
    folder = shutil.copytree(exported("w4"), tmp_path / "w4")
    change_graph(folder / DECODER, move_an_initializer)
    done = run("verify", "--model", folder, "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert said["passed"] is False
    assert [rung["error"] > rung["tolerance"] for rung in said["rungs"]] == [False, True, False, False, False]
    done = run("verify", "--model", folder)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "FAILS" in line]
    assert line.startswith(f"FAILS: {DECODER} is ")


def test_a_folder_that_passes_exits_0(exported):
    done = run("verify", "--model", exported("fp16"))
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert rows[2:] == [VISION_GRAPH, DECODER, MTP, *REWINDS]
    assert "tokens/s" in done.stdout
    assert "FAILS" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verify", "--model", "nowhere"], "nowhere: no such folder"),
        (["verify", "--device", "tpu"], "--device tpu"),
        (["--exact", "verify"], "--exact in front of `verify` has no effect"),
        (["verifi"], "verifi"),
    ],
)
def test_wrong_input_is_one_line(arguments, says):
    assert_one_line(run(*arguments), says)


def test_cuda_that_is_not_there_is_one_line(exported, quantized, tmp_path):
    with pytest.raises(InputError, match="not exported for cuda; run: python -m export"):
        verify(exported("w4"), "cuda")
    folder = shutil.copytree(quantized("w4"), tmp_path / "w4")
    export(folder, "cuda")
    with pytest.raises(InputError, match="CUDA was asked for"):
        verify(folder, "cuda")


ON_CUDA = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from export import verify

found = verify(Path(sys.argv[1]), "cuda")
print(json.dumps(asdict(found) | {"passed": found.passed}))
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch would load its CUDA libraries before the stand-in's")
@pytest.mark.parametrize(("name", "least", "most"), [("w4", 0.003, 0.06), ("bf16", 0.03, 0.4)])
def test_on_a_card_it_says_where_nodes_run_and_zeros_fail(name, least, most, cuda_stub: CudaStub, quantized, tmp_path):
    """The stand-in computes nothing, so that all but the values can be seen."""
    folder = shutil.copytree(quantized(name), tmp_path / name)
    export(folder, "cuda")
    found = cuda_stub.run(ON_CUDA, folder)
    assert not found["passed"]
    graphs = ("vision", "decoder", "mtp", "rewind", "mtp_rewind")
    assert [rung["graph"] for rung in found["rungs"]] == [f"{graph}.cuda.onnx" for graph in graphs]
    *computed, rewind, mtp_rewind = found["rungs"]
    assert all(rung["error"] == 1 and least < rung["tolerance"] < most for rung in computed)
    assert [rung["tolerance"] for rung in (rewind, mtp_rewind)] == [EXACT, EXACT]
    assert all(set(rung["nodes"]) == {"CUDA"} for rung in found["rungs"])
