"""The Python API: what `from quantize import …` gives, and what it leaves unimported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

import quantize as package
from calib_data import READER
from quantize import Report, Settings, quantize
from quantize.checkpoint.reader import open_checkpoint
from quantize.solver.quantizers import UniformQuantizer, rtn


def test_the_reader_is_quantized_through_the_api(tmp_path):
    settings = Settings(str(READER), str(tmp_path / "out"), count=1, solver="rtn", reference=0)
    assert (settings.source, settings.folder) == (READER, tmp_path / "out")
    report = quantize(settings)
    assert isinstance(report, Report)
    assert (report.documents, len(report.linears)) == (1, 4 * 7 + 4 * 5 + 2 + 1 + 8)
    source, result = open_checkpoint(READER), open_checkpoint(tmp_path / "out")
    assert report.bytes == sum(tensor.nbytes for tensor in result.tensors.values())
    for name, bits in (("model.language_model.layers.3.mlp.up_proj", 4), ("lm_head", 8)):
        W = source.load(f"{name}.weight", torch.float32)
        codes, scales = rtn(W, UniformQuantizer(bits, 128))
        assert torch.equal(unpack_from_int32(result.load(f"{name}.weight_packed"), bits, W.shape), codes)
        assert torch.equal(result.load(f"{name}.weight_scale"), scales)
    written = json.loads((tmp_path / "out" / "quantization_report.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.as_dict()))
    assert quantize(settings) is None


def test_a_path_and_a_str_are_the_same_settings():
    by_str, by_path = Settings(str(READER)), Settings(READER)
    assert by_str.folder == by_path.folder
    assert by_str.record("a", "b") == by_path.record("a", "b")


def test_settings_and_the_command_line_need_no_torch():
    script = (
        "import sys, quantize.__main__; from quantize import Settings; Settings('m'); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="module 'quantize' has no attribute 'quantise'"):
        _ = package.quantise


def test_documents_may_be_a_path():
    settings = Settings("model", documents=Path("pages"))
    assert settings.documents == "pages"
    json.dumps(settings.record("checkpoint", "companions"))
