"""Drivers older and newer than the CUDA that ONNX Runtime was built for."""

import pytest

MEMORY = """
import json, sys
import onnxruntime
from traffic import set_driver_version
from calib_data.errors import InputError
from runtime.sessions import Buffer, Device, require_device

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
    """It gives its cards; the CUDA runtime refuses it at the first memory that is asked for."""
    assert cuda_stub.run(MEMORY, driver, "13.0") == (
        f"CUDA was asked for but the NVIDIA driver supports CUDA {named} at most and this onnxruntime needs CUDA 13; "
        "install a newer driver, or use --device cpu"
    )


@pytest.mark.parametrize(("driver", "built"), [("13000", "13.0"), ("13000", "13.2"), ("14000", "13.0"), ("13000", "")])
def test_a_driver_of_the_same_major_version_does(driver, built, cuda_stub):
    """And a newer one, as NVIDIA promises; a build that does not name its version is not refused for that."""
    assert cuda_stub.run(MEMORY, driver, built) == "cuda"
