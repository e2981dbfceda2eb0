"""Devices that sessions run on, and what a GPU needs: a driver, CUDA's libraries, and cuDNN for fast attention."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from console.errors import InputError
from console.progress import say

_WINDOWS = sys.platform == "win32"
_CUDNN = "cudnn64_9.dll" if _WINDOWS else "libcudnn.so.9"
# Versions that ONNX Runtime's attention uses, from its source (cudnn_flash_attention.cu).
_CUDNN_OLDEST, _CUDNN_REFUSED, _CUDNN_ANY_LENGTH = (9, 3, 0), ((9, 10, 0), (9, 10, 1)), (9, 6, 0)


@dataclass(frozen=True)
class Device:
    """The CPU or one GPU."""

    kind: Literal["cpu", "cuda"]
    """Name of the execution provider, as export's --device has it."""
    index: int = 0
    """Which GPU, where there are several."""

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read "cpu", "cuda" or "cuda:1". Raises InputError for anything else."""
        match = re.fullmatch(r"cpu|cuda(?::(\d+))?", text)
        if not match:
            raise InputError(f'--device {text}: write "cpu", "cuda", or "cuda:1" for the second GPU')
        return cls("cpu" if text == "cpu" else "cuda", int(match[1] or 0))


HOST = Device("cpu")


def require_device(device: Device) -> None:
    """Check that a device can be used: ONNX Runtime alone would fall back to the CPU. Raises InputError."""
    if device.kind == "cuda":
        require_cuda(device.index)


def require_cuda(index: int) -> None:
    """Raise InputError for what is missing for GPU number `index`. Report on stderr, once, what makes it slower."""
    advice = "install onnxruntime-gpu, its CUDA libraries and an NVIDIA driver, or use --device cpu"
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise InputError(f"CUDA was asked for but this onnxruntime has no CUDA provider; {advice}")
    try:
        driver = load_driver()
    except OSError as error:
        raise InputError(f"CUDA was asked for but there is no NVIDIA driver ({error}); {advice}") from error
    gpus = ctypes.c_int()
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(gpus)):
        raise InputError(f"CUDA was asked for but the NVIDIA driver reports no GPU (error {status}); {advice}")
    if index >= gpus.value:
        raise InputError(f"--device cuda:{index}: there is no such GPU; the last is cuda:{gpus.value - 1}")
    _require_version(driver)
    ort.preload_dlls()  # finds the libraries in NVIDIA's wheels, which no search path has
    if sys.platform == "linux":
        _require_libraries(Path(ort.__file__).parent / "capi")
    _note_cudnn()


def load_driver() -> ctypes.CDLL:
    """Load NVIDIA's driver; a process has one. Raises OSError where there is none."""
    return ctypes.CDLL("nvcuda.dll" if _WINDOWS else "libcuda.so.1")


def _require_version(driver: ctypes.CDLL) -> None:
    """Refuse a driver that is too old for the CUDA that ONNX Runtime was built for.

    Any driver of the same major version works. A build may not name its version.
    """
    needed = re.match(r"\d+", ort.cuda_version)
    supported = ctypes.c_int()  # 12080 for CUDA 12.8
    driver.cuDriverGetVersion(ctypes.byref(supported))
    major, rest = divmod(supported.value, 1000)
    if needed and major < int(needed[0]):
        raise InputError(
            f"CUDA was asked for but the NVIDIA driver supports CUDA {major}.{rest // 10} at most and this onnxruntime "
            f"needs CUDA {needed[0]}; install a newer driver, or use --device cpu"
        )


def _require_libraries(folder: Path) -> None:
    """Load the CUDA provider's libraries; the loader's message names the first that is missing."""
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        raise InputError(
            f"CUDA was asked for but one of its libraries is missing ({error}); install CUDA's libraries of this "
            "version, for instance with: pip install 'onnxruntime-gpu[cuda,cudnn]'; or use --device cpu"
        ) from error


@cache
def _note_cudnn() -> None:
    """Report once on stderr why ONNX Runtime does not use cuDNN's attention, if it does not."""
    if problem := cudnn_problem(cudnn_version()):
        say(f"{problem}: prompts use ONNX Runtime's own kernels; for cuDNN's: pip install -U nvidia-cudnn-cu13")


def cudnn_version() -> tuple[int, int, int] | None:
    """Version of the cuDNN that ONNX Runtime would load; None where there is none. Call `require_cuda` first."""
    try:
        library = ctypes.CDLL(_CUDNN)
    except OSError:
        return None
    library.cudnnGetVersion.restype = ctypes.c_size_t
    number = int(library.cudnnGetVersion())  # 91002 is 9.10.2
    return number // 10000, number // 100 % 100, number % 100


def cudnn_problem(version: tuple[int, int, int] | None) -> str | None:
    """Why ONNX Runtime's attention uses this cuDNN not at all, or not always; None where it does."""
    if version is None:
        return "cuDNN 9 is not installed"
    name = "cuDNN " + ".".join(map(str, version))
    if version < _CUDNN_OLDEST or version in _CUDNN_REFUSED:
        return f"{name} is not used by ONNX Runtime's attention"
    if version < _CUDNN_ANY_LENGTH:
        return f"{name} is used for prompts and caches of multiples of 64 tokens only"
    return None
