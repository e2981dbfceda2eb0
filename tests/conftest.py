"""Fixtures for all tests."""

import pytest

from .cuda_stub.build import CudaStub, build, missing


@pytest.fixture(scope="session")
def cuda_stub(tmp_path_factory: pytest.TempPathFactory) -> CudaStub:
    """ONNX Runtime's CUDA provider on a stand-in device; skips where it cannot be built."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    return build(tmp_path_factory.mktemp("cuda_stub"))
