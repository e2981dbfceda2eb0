"""Folders that several tests need, each made once with the project's own code, in however many processes they run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from calib_data import READER
from export.graphs import export_folder
from quantize.pipeline import quantize
from quantize.settings import Settings

from .cuda_stub.build import CudaStub, build, missing

CALIBRATION_DOCUMENTS = 24
MODELS = {
    "w4": {"bits": 4, "reference": 6},
    "w8": {"bits": 8},
    "nf4": {"quant_type": "nf4"},
    "bf16": {"bits": 4, "dtype": "bfloat16"},
}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One folder for all test processes of a run."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def quantized(shared: Path) -> Callable[[str], Path]:
    """Readers without graphs: fp16 (a copy), or one of MODELS. Not to be written to."""

    def folder(name: str) -> Path:
        path = shared / "quantized" / name
        with FileLock(shared / f"quantized-{name}.lock"):
            if name == "fp16" and not path.exists():
                shutil.copytree(READER, path, ignore=shutil.ignore_patterns("*.onnx", "runtime.json"))
            elif name != "fp16":
                options = {"reference": 0, **MODELS[name]}
                quantize(Settings(READER, path, count=CALIBRATION_DOCUMENTS, **options))  # once: then it is there
        return path

    return folder


@pytest.fixture(scope="session")
def exported(shared: Path, quantized: Callable[[str], Path]) -> Callable[[str], Path]:
    """The same with exact CPU graphs. Not to be written to."""

    def folder(name: str) -> Path:
        path = shared / "exported" / name
        with FileLock(shared / f"exported-{name}.lock"):
            if not path.exists():
                shutil.copytree(quantized(name), path)
                export_folder(path, "cpu", exact=True)
        return path

    return folder


@pytest.fixture(scope="session")
def cuda_stub(tmp_path_factory: pytest.TempPathFactory) -> CudaStub:
    """ONNX Runtime's CUDA provider on a stand-in device; skips where it cannot be built."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    return build(tmp_path_factory.mktemp("cuda_stub"))
