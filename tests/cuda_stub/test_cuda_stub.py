"""The stand-in device: sessions load, ONNX Runtime places nodes, and every copied byte is counted."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from .build import CudaStub

RUN = """
import json, sys
import numpy as np, onnxruntime as ort
from traffic import Traffic
from runtime.ort.sessions import placement

options = ort.SessionOptions()
options.enable_profiling = True
options.profile_file_prefix = sys.argv[2]
session = ort.InferenceSession(sys.argv[1], options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
x = np.ones((3, 64), np.float16)
with Traffic() as plain:
    (y,) = session.run(None, {"x": x})

bound_x = ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0)
bound_y = ort.OrtValue.ortvalue_from_shape_and_type((3, 32), np.float16, "cuda", 0)
binding = session.io_binding()
binding.bind_ortvalue_input("x", bound_x)
binding.bind_ortvalue_output("y", bound_y)
with Traffic() as bound:
    session.run_with_iobinding(binding)
with Traffic() as read:
    bound_y.numpy()

print(json.dumps({
    "providers": session.get_providers(),
    "placement": placement(session),
    "plain": plain.counts, "bound": bound.counts, "read": read.counts,
    "shape": y.shape,
}))
"""


def save_model(path, *nodes):
    weight = helper.make_tensor("w", TensorProto.FLOAT16, (64, 32), np.ones((64, 32), np.float16).tobytes(), raw=True)
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ("n", 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ("n", 32))],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture
def matmul(tmp_path):
    path = tmp_path / "matmul.onnx"
    save_model(path, helper.make_node("MatMul", ["x", "w"], ["y"]))
    return path


def test_nodes_run_on_the_device_and_bytes_are_counted(cuda_stub: CudaStub, matmul):
    result = cuda_stub.run(RUN, matmul, matmul.with_suffix(""))
    assert result["providers"] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert result["placement"] == [["MatMul", "CUDAExecutionProvider"]]
    assert result["shape"] == [3, 32]
    assert (result["plain"]["bytes_to_device"], result["plain"]["bytes_to_host"]) == (3 * 64 * 2, 3 * 32 * 2)
    assert (result["bound"]["bytes_to_device"], result["bound"]["bytes_to_host"]) == (0, 0)
    assert (result["read"]["bytes_to_host"], result["read"]["copies_to_host"]) == (3 * 32 * 2, 1)


def test_a_node_without_a_device_kernel_shows_up(cuda_stub: CudaStub, tmp_path):
    """Sinh has a CPU kernel only: its provider, the copies around it and their float32 bytes are seen."""
    path = tmp_path / "fallback.onnx"
    save_model(
        path,
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("Sinh", ["single"], ["sinh"]),
        helper.make_node("Cast", ["sinh"], ["y"], to=TensorProto.FLOAT16),
    )
    result = cuda_stub.run(RUN, path, path.with_suffix(""))
    assert {tuple(node) for node in result["placement"]} == {
        ("MatMul", "CUDAExecutionProvider"),
        ("Cast", "CUDAExecutionProvider"),
        ("MemcpyToHost", "CUDAExecutionProvider"),
        ("Sinh", "CPUExecutionProvider"),
        ("MemcpyFromHost", "CUDAExecutionProvider"),
    }
    assert (result["bound"]["bytes_to_host"], result["bound"]["bytes_to_device"]) == (3 * 32 * 4, 3 * 32 * 4)


def test_a_failing_script_reports_its_error(cuda_stub: CudaStub):
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        cuda_stub.run("1 / 0")
