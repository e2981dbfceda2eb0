"""Hidden states on disk: what is put in comes out, and what 16 bits cannot hold is said in a line."""

import errno
import os
from pathlib import Path

import pytest
import torch

from calib_data import READER
from console.errors import InputError
from quantize.calibration.hidden_states import Activations, Layout, _allocate, keep_only
from quantize.pipeline import quantize
from quantize.settings import Settings


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_documents_come_back_from_the_file(tmp_path, dtype):
    layout = Layout("states", [3, 0, 5], 4)
    written, first, last = Activations(tmp_path, layout, dtype, new=True), torch.randn(3, 4), torch.randn(5, 4)
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
        (
            torch.float16,
            float("nan"),
            "reaches nan, float16 cannot hold it; the checkpoint is damaged, download it again$",
        ),
        (
            torch.float16,
            float("inf"),
            "reaches inf, float16 cannot hold it; the checkpoint is damaged, download it again$",
        ),
        (torch.bfloat16, float("inf"), "bfloat16 cannot hold it; the checkpoint is damaged"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, dtype, value, says):
    states = Activations(tmp_path, Layout("states", [2], 2), dtype, new=True)
    with pytest.raises(InputError, match=says):
        states[0] = torch.tensor([[0.0, value], [1.0, -1.0]])


@pytest.mark.parametrize("keep", [None, 0, 1, -1])
def test_a_file_that_is_gone_or_cut_is_not_filled_up_with_zeros(tmp_path, keep):
    layout = Layout("states", [3], 4)
    Activations(tmp_path, layout, torch.float16, new=True)[0] = torch.ones(3, 4)
    path = tmp_path / "states"
    path.unlink() if keep is None else path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=f"{path} is missing or truncated; remove {tmp_path} and begin again"):
        Activations(tmp_path, layout, torch.float16)


def test_hidden_states_that_nothing_reads_are_removed(tmp_path):
    names = ["activations-calibration-3", "activations-calibration-4", "activations-evaluation-3", "model.safetensors"]
    for name in names:
        (tmp_path / name).touch()
    keep_only(tmp_path, [Layout(names[1], [], 8), Layout("not-there", [], 8)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[1], names[3]]


@pytest.mark.parametrize("keep", [None, -2])
def test_a_run_does_not_go_on_from_hidden_states_that_were_cut(tmp_path, monkeypatch, keep):
    settings = Settings(READER, tmp_path / "out", count=1, solver="rtn", reference=0)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as middle, pytest.raises(KeyboardInterrupt):
        middle.setattr("quantize.pipeline.Pipeline._decoder_layer", killed)
        quantize(settings)
    (path,) = (tmp_path / "out.partial").glob("activations-calibration-7")
    whole = path.read_bytes()
    path.unlink() if keep is None else path.write_bytes(whole[:keep])
    with pytest.raises(
        InputError, match=r"activations-calibration-7 is missing or truncated; remove .*out.partial and begi"
    ):
        quantize(settings)
    path.write_bytes(whole)
    assert quantize(settings) is not None


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
