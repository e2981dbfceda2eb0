"""Hidden states on disk: what is put in comes out, and what 16 bits cannot hold is said in a line."""

import errno
import os
from pathlib import Path

import pytest
import torch

from calib_data.errors import InputError
from quantize.activations import Activations, Layout, _allocate


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_documents_come_back_from_the_file(tmp_path, dtype):
    layout = Layout("states", [3, 0, 5], 4)
    written, first, last = Activations(tmp_path, layout, dtype), torch.randn(3, 4), torch.randn(5, 4)
    written[0], written[2] = first, last
    again = Activations(tmp_path, layout, dtype)
    assert len(again) == 3
    assert [len(again[i]) for i in range(3)] == [3, 0, 5]
    assert again[0].dtype == torch.float32
    assert torch.equal(again[0], first.to(dtype).float())
    assert torch.equal(again[2], last.to(dtype).float())
    assert (tmp_path / "states").stat().st_size == 8 * 4 * 2


@pytest.mark.parametrize(
    ("dtype", "value", "says"),
    [
        (torch.float16, 1e5, "reaches 1e.05, float16 cannot hold it; use --dtype bfloat16"),
        (torch.float16, float("nan"), "use --dtype bfloat16"),
        (torch.bfloat16, float("inf"), "bfloat16 cannot hold it, the checkpoint is damaged"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, dtype, value, says):
    states = Activations(tmp_path, Layout("states", [2], 2), dtype)
    with pytest.raises(InputError, match=says):
        states[0] = torch.tensor([[0.0, value], [1.0, -1.0]])


@pytest.mark.parametrize("size", [1, 2**24, 2**24 + 5])
def test_room_is_taken_where_the_system_has_no_call_for_it(tmp_path, monkeypatch, size):
    monkeypatch.delattr(os, "posix_fallocate")
    _allocate(tmp_path / "states", size)
    status = (tmp_path / "states").stat()
    assert status.st_size == size
    assert status.st_blocks * 512 >= size  # a sparse file has none


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_is_full_says_so_there_too(monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        _allocate(Path("/dev/full"), 100)
