"""Drivers and cuDNN older and newer than those that ONNX Runtime was built for."""

import shutil
import subprocess

import pytest

from .build import CudaStub

MEMORY = """
import json, sys
import onnxruntime
from traffic import set_driver_version
from console.errors import InputError
from runtime.ort.buffer import Buffer
from runtime.ort.device import Device, require_device

set_driver_version(int(sys.argv[1]))
onnxruntime.cuda_version = sys.argv[2]
try:
    require_device(Device("cuda"))
    said = Buffer.empty((4,), "float32", Device("cuda")).device.kind
except InputError as error:
    said = str(error)
print(json.dumps(said))
"""


@pytest.mark.parametrize(("driver", "named"), [("12080", "12.8"), ("11040", "11.4")])
def test_a_driver_too_old_for_cuda_is_one_line(driver, named, cuda_stub):
    """It reports its GPUs, but the CUDA runtime refuses it at the first allocation."""
    assert cuda_stub.run(MEMORY, driver, "13.0") == (
        f"CUDA was asked for but the NVIDIA driver supports CUDA {named} at most and this onnxruntime needs CUDA 13; "
        "install a newer driver, or use --device cpu"
    )


@pytest.mark.parametrize(("driver", "built"), [("13000", "13.0"), ("13000", "13.2"), ("14000", "13.0"), ("13000", "")])
def test_a_driver_of_the_same_major_version_works(driver, built, cuda_stub):
    """So does a newer one, as NVIDIA promises. A build that does not name its version is not refused."""
    assert cuda_stub.run(MEMORY, driver, built) == "cuda"


CUDNN = """
import contextlib, io, json
from runtime.ort.device import cudnn_version, require_cuda
with contextlib.redirect_stderr(io.StringIO()) as said:
    require_cuda(0)
    require_cuda(0)
print(json.dumps([cudnn_version(), said.getvalue()]))
"""
WITHOUT = ": prompts use ONNX Runtime's own kernels; for cuDNN's: pip install -U nvidia-cudnn-cu13\n"


@pytest.mark.parametrize(
    ("number", "version", "said"),
    [
        (None, None, f"cuDNN 9 is not installed{WITHOUT}"),
        (90201, [9, 2, 1], f"cuDNN 9.2.1 is not used by ONNX Runtime's attention{WITHOUT}"),
        (90300, [9, 3, 0], f"cuDNN 9.3.0 is used for prompts and caches of multiples of 64 tokens only{WITHOUT}"),
        (90501, [9, 5, 1], f"cuDNN 9.5.1 is used for prompts and caches of multiples of 64 tokens only{WITHOUT}"),
        (90600, [9, 6, 0], ""),
        (91000, [9, 10, 0], f"cuDNN 9.10.0 is not used by ONNX Runtime's attention{WITHOUT}"),
        (91001, [9, 10, 1], f"cuDNN 9.10.1 is not used by ONNX Runtime's attention{WITHOUT}"),
        (91002, [9, 10, 2], ""),
        (92000, [9, 20, 0], ""),
    ],
)
def test_a_cudnn_that_attention_does_not_use_is_one_line(number, version, said, cuda_stub, tmp_path):
    """Reported once, however many sessions are opened."""
    folder = tmp_path / "libraries"
    shutil.copytree(cuda_stub.folder, folder)
    if number is not None:
        (folder / "cudnn.c").write_text(f"unsigned long cudnnGetVersion(void) {{ return {number}; }}\n")
        subprocess.run(["gcc", "-shared", "-o", folder / "libcudnn.so.9", folder / "cudnn.c"], check=True)
    assert CudaStub(folder).run(CUDNN) == [version, said]
