"""Devices as the command line names them."""

import pytest

from console.errors import InputError
from runtime.ort.device import Device

CPU = Device("cpu")


@pytest.mark.parametrize(
    ("text", "device"),
    [("cpu", CPU), ("cuda", Device("cuda", 0)), ("cuda:0", Device("cuda", 0)), ("cuda:12", Device("cuda", 12))],
)
def test_devices(text, device):
    assert Device.parse(text) == device


@pytest.mark.parametrize("text", ["", "gpu", "cpu:1", "cuda:", "cuda:x", "cuda:-1", "CUDA"])
def test_invalid_devices_are_refused(text):
    with pytest.raises(InputError, match=r'^--device .*: write "cpu", "cuda"'):
        Device.parse(text)
