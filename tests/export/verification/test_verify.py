"""`python -m export verify`: every kind of folder passes, and damage of every kind does not."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch

from console.errors import InputError
from export import verify
from export.modules.weights import StoredModule
from export.verification.tolerances import EXACT, INT8_ACTIVATIONS, INT8_KV, VISION
from quantize.checkpoint.reader import open_checkpoint
from runtime.ort.manifest import load_manifest

from ...cuda_stub.build import CudaStub
from ..test_command import assert_one_line

DECODER, VISION_GRAPH, MTP = "decoder.cpu.onnx", "vision.cpu.onnx", "mtp.cpu.onnx"
REWINDS = ["rewind.cpu.onnx", "mtp_rewind.cpu.onnx"]
PRODUCTS = {"w4": "MatMulNBits", "w8": "MatMulNBits", "nf4": "MatMulBnb4", "fp16": "FusedMatMul"}


@pytest.mark.parametrize("name", PRODUCTS)
def test_folders_of_every_kind_pass(name, exported):
    """One in bfloat16 is in test_formats.py."""
    assert_passes(exported(name), PRODUCTS[name])


def assert_passes(folder: Path, product: str) -> None:
    """product: the operator of the decoder's linears."""
    found = verify(folder, "cpu")
    assert found.passed
    assert [check.graph for check in found.checks] == [VISION_GRAPH, DECODER, MTP, *REWINDS]
    assert [check.tolerance for check in found.checks] == [VISION, *[EXACT] * 4]
    assert [check.error > 0 for check in found.checks] == [True] * 3 + [False] * 2
    _, decoder, *_ = found.checks
    nodes = [node.op_type for node in onnx.load(folder / DECODER, load_external_data=False).graph.node]
    assert decoder.operators[product] == nodes.count(product) >= 4
    assert sum(decoder.operators.values()) == len(nodes)
    assert set(decoder.nodes) == {"CPU"}
    assert 40 < decoder.nodes["CPU"] < len(nodes)  # casts of stored weights are folded
    assert found.tokens_per_second > 0
    assert found.memory > 50


def test_activations_and_caches_of_8_bits_have_a_check_of_their_own(exported):
    found = verify(exported("w4", exact=False, kv_bits=8), "cpu")
    assert found.passed
    by_itself, float32 = ([check for check in found.checks if check.float32 == wanted] for wanted in (False, True))
    assert [check.tolerance for check in by_itself] == [*[INT8_ACTIVATIONS] * 3, EXACT, EXACT]
    assert [check.graph for check in float32] == [VISION_GRAPH, DECODER, MTP]
    assert [check.tolerance for check in float32] == [VISION, INT8_KV, EXACT]
    assert float32[0].error < by_itself[0].error / 10
    assert found.about.startswith("float32 activations, int8 in packed products, int8 KV cache; ")
    found = verify(exported("w4", kv_bits=8), "cpu")
    assert found.passed
    assert [check.tolerance for check in found.checks] == [VISION, INT8_KV, *[EXACT] * 3]
    assert "int8 KV cache" in found.about


def test_int8_activations_are_not_named_where_there_are_none(exported, tmp_path):
    """NF4 products never round activations, so both exports have the same graphs."""
    folder = shutil.copytree(exported("nf4"), tmp_path / "nf4")
    path = folder / "runtime.json"
    path.write_text(path.read_text().replace('"exact": true', '"exact": false'))
    found = verify(folder, "cpu")
    assert not load_manifest(folder).targets["cpu"].exact
    assert found.about.startswith("float32 activations, float32 KV cache; ")
    assert not any(check.float32 for check in found.checks)


def test_memory_is_that_of_one_product(exported, monkeypatch):
    """Weights of the eager modules are freed as soon as they were used, so that models larger than memory fit."""
    held, largest = [0], [0]
    fill, free = StoredModule.load_weights, StoredModule.unload_weights

    def counted_fill(self, folder):
        fill(self, folder)
        held[0] += sum(buffer.nbytes for buffer in self.buffers())
        largest[0] = max(largest[0], held[0])

    def counted_free(self):
        held[0] -= sum(buffer.nbytes for buffer in self.buffers())
        free(self)

    monkeypatch.setattr(StoredModule, "load_weights", counted_fill)
    monkeypatch.setattr(StoredModule, "unload_weights", counted_free)
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


def test_a_byte_that_changed_after_export_fails(command, exported, tmp_path):
    """Graphs and eager modules read the same bytes and agree; that they are not those of the export is seen."""
    folder = shutil.copytree(exported("w4"), tmp_path / "w4")
    file = damaged(folder, "model.language_model.layers.2.mlp.down_proj.weight_packed")
    code, out, err = command("verify", "--model", folder)
    assert code == 1, err
    assert f"FAILS: {file} is damaged" in out
    assert out.count("FAILS") == 1


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
    assert [check.graph for check in found.checks if not check.passed] == [graph]
    assert not found.damaged
    assert not found.passed


def sharpen_attention(graph) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "scale":
                attribute.f *= 1.01


@pytest.mark.parametrize(("graph", "change"), [(DECODER, narrow_a_window), (VISION_GRAPH, sharpen_attention)])
def test_rounding_to_int8_hides_no_graph_that_is_a_little_wrong(graph, change, exported, tmp_path):
    folder = shutil.copytree(exported("w4", exact=False), tmp_path / "w4")
    change_graph(folder / graph, change)
    failed = {check.name: check.error for check in verify(folder, "cpu").checks if not check.passed}
    assert f"{graph}, float32" in failed
    assert failed.keys() <= {graph, f"{graph}, float32"}
    assert failed[f"{graph}, float32"] < INT8_ACTIVATIONS


def test_the_command_names_the_graph(command, exported, tmp_path):
    folder = shutil.copytree(exported("w4"), tmp_path / "w4")
    change_graph(folder / DECODER, move_an_initializer)
    code, out, _ = command("verify", "--model", folder, "--json")
    assert code == 1
    said = json.loads(out)
    assert said["passed"] is False
    assert [check["error"] > check["tolerance"] for check in said["checks"]] == [False, True, False, False, False]
    code, out, _ = command("verify", "--model", folder)
    assert code == 1
    (line,) = [line for line in out.splitlines() if "FAILS" in line]
    assert line.startswith(f"FAILS: {DECODER} is ")


def test_a_folder_that_passes_exits_0(command, exported):
    code, out, err = command("verify", "--model", exported("fp16"))
    assert code == 0, err
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert rows[2:] == [VISION_GRAPH, DECODER, MTP, *REWINDS]
    assert "tokens/s" in out
    assert "FAILS" not in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verify", "--model", "nowhere"], "nowhere: no such folder"),
        (["verify", "--device", "tpu"], "--device tpu"),
        (["--exact", "verify"], "--exact in front of `verify` has no effect"),
        (["verifi"], "verifi"),
    ],
)
def test_wrong_input_is_one_line(arguments, says, command):
    assert_one_line(command(*arguments), says)


def test_cuda_that_is_not_there_is_one_line(exported):
    with pytest.raises(InputError, match="not exported for cuda; run: python -m export"):
        verify(exported("w4"), "cuda")
    with pytest.raises(InputError, match="CUDA was asked for"):
        verify(exported("w4", "cuda"), "cuda")


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
def test_on_a_gpu_it_says_where_nodes_run_and_zeros_fail(name, least, most, cuda_stub: CudaStub, exported):
    """The stand-in computes nothing, so everything but the values can be tested."""
    found = cuda_stub.run(ON_CUDA, exported(name, "cuda"))
    assert not found["passed"]
    graphs = ("vision", "decoder", "mtp", "rewind", "mtp_rewind")
    assert [check["graph"] for check in found["checks"]] == [f"{graph}.cuda.onnx" for graph in graphs]
    *computed, rewind, mtp_rewind = found["checks"]
    assert all(check["error"] == 1 and least < check["tolerance"] < most for check in computed)
    assert [check["tolerance"] for check in (rewind, mtp_rewind)] == [EXACT, EXACT]
    assert all(set(check["nodes"]) == {"CUDA"} for check in found["checks"])
