"""Folders that several tests need, each made once a session with the project's own commands."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from calib_data import READER
from export.graphs import export_folder
from quantize.settings import Settings
from quantize.walk import quantize

from .cuda_stub.build import CudaStub, build, missing

CALIBRATION_DOCUMENTS = 24


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Quantized readers by name: fp16 (a copy), w4, w8, nf4, w4-rtn, bf16 (4 bits, the rest in bfloat16)."""
    choices = {
        "w4": {"bits": 4},
        "w8": {"bits": 8},
        "nf4": {"grid": "nf4"},
        "w4-rtn": {"bits": 4, "solver": "rtn"},
        "bf16": {"bits": 4, "dtype": "bfloat16"},
    }

    @cache
    def folder(name: str) -> Path:
        path = tmp_path_factory.mktemp("models") / name
        if name == "fp16":
            shutil.copytree(READER, path, ignore=shutil.ignore_patterns("*.onnx", "runtime.json"))
        else:
            quantize(Settings(READER, path, samples=CALIBRATION_DOCUMENTS, **choices[name]))
        return path

    return folder


@pytest.fixture(scope="session")
def exported(quantized: Callable[[str], Path]) -> Callable[[str], Path]:
    """The same folders with exact CPU graphs."""

    @cache
    def folder(name: str) -> Path:
        export_folder(quantized(name), "cpu", exact=True)
        return quantized(name)

    return folder


@pytest.fixture(scope="session")
def cuda_stub(tmp_path_factory: pytest.TempPathFactory) -> CudaStub:
    """ONNX Runtime's CUDA provider on a stand-in device; skips where it cannot be built."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    return build(tmp_path_factory.mktemp("cuda_stub"))
