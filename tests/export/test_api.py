"""`from export import export, verify`: what they return, and that the package itself loads no torch."""

import inspect
import re
import shutil
import subprocess
import sys

import pytest

import export
from console.errors import InputError
from runtime.ort.manifest import load_manifest


@pytest.mark.parametrize("as_given", [str, lambda path: path], ids=["str", "Path"])
def test_export_returns_the_manifest_that_it_wrote(as_given, untraced, quantized, tmp_path):
    folder = shutil.copytree(quantized("w4"), tmp_path / "w4")
    manifest = export.export(as_given(folder), device="cuda", kv_bits=8, kv_layout="full", block_size=32)
    assert manifest == load_manifest(folder)
    assert list(manifest.targets) == ["cuda"]
    target = manifest.targets["cuda"]
    assert (target.dtype, target.kv_dtype, target.kv_layout, target.block_size) == ("float16", "int8", "full", 32)
    assert target.exact
    assert (folder / target.decoder).is_file()


def test_by_default_it_exports_for_the_cpu_with_int8_activations(untraced, quantized, tmp_path):
    folder = shutil.copytree(quantized("w4"), tmp_path / "w4")
    target = export.export(folder).targets["cpu"]
    assert (target.dtype, target.kv_dtype, target.kv_layout) == ("float32", "float32", "window")
    assert (target.exact, target.block_size) == (False, None)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device": "gpu"}, "device='gpu': give one of 'cpu', 'cuda'"),
        ({"kv_bits": 4}, "kv_bits=4: give one of 16, 8"),
        ({"kv_layout": "all"}, "kv_layout='all': give one of 'window', 'full'"),
        ({"block_size": 64}, "block_size=64: give one of 32, None"),
    ],
)
def test_other_values_are_refused(settings, says, tmp_path):
    with pytest.raises(InputError, match=f"^{re.escape(says)}$"):
        export.export(tmp_path, **settings)


def test_verify_takes_a_name_and_returns_every_check(exported):
    verification = export.verify(str(exported("w4")))
    assert verification.passed
    assert verification.device == "cpu"
    assert [check.graph.partition(".")[0] for check in verification.checks] == [
        "vision",
        "decoder",
        "mtp",
        "rewind",
        "mtp_rewind",
    ]


@pytest.mark.parametrize("function", ["export", "verify"])
def test_every_parameter_is_typed_and_documented(function):
    signature = inspect.signature(getattr(export, function))
    for name, parameter in signature.parameters.items():
        assert parameter.annotation is not inspect.Parameter.empty
        assert f"\n    {name}: " in getattr(export, function).__doc__
    assert signature.return_annotation is not inspect.Signature.empty


def test_the_package_loads_functions_when_they_are_used():
    script = "import sys, export; assert 'torch' not in sys.modules; export.export; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="module 'export' has no attribute 'import_'"):
        _ = export.import_


def test_exact_is_refused_for_cuda(quantized):
    with pytest.raises(InputError, match="--exact: has no effect on CUDA graphs"):
        export.export(quantized("fp16"), "cuda", exact=True)
