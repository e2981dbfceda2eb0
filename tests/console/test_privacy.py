"""Nothing is sent to makers of libraries: ONNX Runtime writes an id of the machine before it sends."""

import os
import subprocess
import sys

import pytest

MODULES = ["runtime", "runtime.ort.sessions", "export.verification.verify", "bench.gpu.stages.kernels"]


def written(code, home):
    """Files that a process writes into its home."""
    dropped = "CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    subprocess.run([sys.executable, "-c", code], env=environment | {"HOME": str(home)}, check=True, timeout=100)
    return [path.name for path in home.rglob("*") if "Microsoft" in path.parts and path.is_file()]


@pytest.mark.parametrize("module", MODULES)
def test_onnx_runtime_keeps_no_id(module, tmp_path):
    assert written(f"import {module}, onnxruntime", tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the folder is that of Linux")
def test_onnx_runtime_would_keep_one(tmp_path):
    """So that the test above can fail; where this one does, ONNX Runtime has changed."""
    assert "deviceid" in written("import onnxruntime", tmp_path)
