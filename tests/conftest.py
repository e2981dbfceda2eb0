"""Folders that several tests need, each made once with the project's own code, in however many processes they run."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from calib_data import READER
from export import export
from quantize.pipeline import quantize
from quantize.settings import Settings

from .cuda_stub.build import CudaStub, build, missing
from .tracing import traced_once

CALIBRATION_DOCUMENTS = 24
MODELS = {
    "w4": {"bits": 4, "reference": 6},
    "w8": {"bits": 8, "solver": "rtn"},
    "nf4": {"quant_type": "nf4", "reference": 6},
    "bf16": {"bits": 4, "dtype": "bfloat16"},
}

SLOW_FIXTURES = {"quantization", "quantized", "exported", "quantized_once", "cuda_stub", "chromium"}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One folder for all test processes of a run."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session", autouse=True)
def traces(shared: Path) -> Iterator[None]:
    """Graphs of the same structure are traced once, in whatever folder they are."""
    with traced_once(shared / "traced"):
        yield


@pytest.fixture(scope="session")
def quantization(shared: Path) -> Callable[[str], Settings]:
    """Settings of one of MODELS, whose folder is finished. Not to be written to."""

    def settings(name: str) -> Settings:
        torch.set_num_threads(1)
        options = {"reference": 0, **MODELS[name]}
        wanted = Settings(READER, shared / "quantized" / name, count=CALIBRATION_DOCUMENTS, **options)
        with FileLock(shared / f"quantized-{name}.lock"):
            quantize(wanted)  # once: then it is there
        return wanted

    return settings


@pytest.fixture(scope="session")
def quantized(shared: Path, quantization: Callable[[str], Settings]) -> Callable[[str], Path]:
    """Readers without graphs: fp16 (a copy), or one of MODELS. Not to be written to."""

    def folder(name: str) -> Path:
        if name != "fp16":
            return quantization(name).folder
        path = shared / "quantized" / name
        with FileLock(shared / f"quantized-{name}.lock"):
            if not path.exists():
                shutil.copytree(READER, path, ignore=shutil.ignore_patterns("*.onnx", "runtime.json"))
        return path

    return folder


@pytest.fixture(scope="session")
def exported(shared: Path, quantized: Callable[[str], Path]) -> Callable[..., Path]:
    """The same with graphs, one folder for each device and settings of `export`. Not to be written to.

    CPU graphs are exact unless the settings say otherwise.
    """

    def folder(name: str, device: str = "cpu", **settings: object) -> Path:
        settings = ({"exact": True} if device == "cpu" else {}) | settings
        key = "-".join([name, device, *(f"{option}={value}" for option, value in sorted(settings.items()))])
        path = shared / "exported" / key
        with FileLock(shared / f"exported-{key}.lock"):
            if not path.exists():
                shutil.copytree(quantized(name), path)
                with traced_once(shared / "traced"):
                    export(path, device, **settings)
        return path

    return folder


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are empty files: for tests of what happens to a folder, which need no tracing."""
    monkeypatch.setattr("export.graphs.trace_decoder", lambda *_: None)
    monkeypatch.setattr("export.graphs.trace_vision", lambda *_: None)
    monkeypatch.setattr("export.graphs.save", lambda model, module, path, inputs=(): path.touch())


@pytest.fixture(scope="session")
def cuda_stub(tmp_path_factory: pytest.TempPathFactory) -> CudaStub:
    """ONNX Runtime's CUDA provider on a stand-in device; skips where it cannot be built."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    return build(tmp_path_factory.mktemp("cuda_stub"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as slow whose fixtures quantize, export, build or start a browser."""
    for item in items:
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say in one line, below everything else, that tests found no browser and how to get one."""
    yield
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "make browser" in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} browser tests were skipped; `make browser` installs Chromium")
