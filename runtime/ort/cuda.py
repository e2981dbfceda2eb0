"""What a GPU needs beside ONNX Runtime: a driver, CUDA's libraries, and cuDNN for fast attention over prompts."""

from __future__ import annotations

import ctypes
import re
import sys
from functools import cache
from pathlib import Path

import onnxruntime as ort

from console.errors import InputError
from console.progress import say

_WINDOWS = sys.platform == "win32"
_CUDNN = "cudnn64_9.dll" if _WINDOWS else "libcudnn.so.9"
# Versions that ONNX Runtime's attention takes, as its source has them (cudnn_flash_attention.cu).
_CUDNN_OLDEST, _CUDNN_REFUSED, _CUDNN_ANY_LENGTH = (9, 3, 0), ((9, 10, 0), (9, 10, 1)), (9, 6, 0)


def require_cuda(index: int) -> None:
    """Fail in one line with what is missing for GPU number `index`; say on stderr, once, what only makes it slower."""
    advice = "install onnxruntime-gpu, its CUDA libraries and an NVIDIA driver, or use --device cpu"
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise InputError(f"CUDA was asked for but this onnxruntime has no CUDA provider; {advice}")
    try:
        driver = load_driver()
    except OSError as error:
        raise InputError(f"CUDA was asked for but there is no NVIDIA driver ({error}); {advice}") from error
    cards = ctypes.c_int()
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(cards)):
        raise InputError(f"CUDA was asked for but the NVIDIA driver gives no card (its error {status}); {advice}")
    if index >= cards.value:
        raise InputError(f"--device cuda:{index}: there is no such card; the last is cuda:{cards.value - 1}")
    _require_version(driver)
    ort.preload_dlls()  # finds the libraries of the nvidia wheels, which are on no search path
    if sys.platform == "linux":
        _require_libraries(Path(ort.__file__).parent / "capi")
    _note_cudnn()


def load_driver() -> ctypes.CDLL:
    """NVIDIA's driver, which a process loads once. Raises OSError where there is none."""
    return ctypes.CDLL("nvcuda.dll" if _WINDOWS else "libcuda.so.1")


def _require_version(driver: ctypes.CDLL) -> None:
    """Refuse a driver that gives its cards, but not to the CUDA that ONNX Runtime was built for.

    One of the same major version does, however much older it is. A build may not name its version.
    """
    needed = re.match(r"\d+", ort.cuda_version)
    known = ctypes.c_int()  # 12080 for CUDA 12.8
    driver.cuDriverGetVersion(ctypes.byref(known))
    major, rest = divmod(known.value, 1000)
    if needed and major < int(needed[0]):
        raise InputError(
            f"CUDA was asked for but the NVIDIA driver supports CUDA {major}.{rest // 10} at most and this onnxruntime "
            f"needs CUDA {needed[0]}; install a newer driver, or use --device cpu"
        )


def _require_libraries(folder: Path) -> None:
    """Load what the CUDA provider is linked to; the loader's message names the first library that is not there."""
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        raise InputError(
            f"CUDA was asked for but a library of it is missing ({error}); install the CUDA libraries of this version, "
            "for instance with: pip install 'onnxruntime-gpu[cuda,cudnn]'; or use --device cpu"
        ) from error


@cache
def _note_cudnn() -> None:
    """Say once on stderr what keeps ONNX Runtime from cuDNN's attention, if anything does."""
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
    """Why ONNX Runtime's attention does not use a cuDNN, or not always; None for one that it uses."""
    if version is None:
        return "cuDNN 9 is not installed"
    name = "cuDNN " + ".".join(map(str, version))
    if version < _CUDNN_OLDEST or version in _CUDNN_REFUSED:
        return f"{name} is not used by ONNX Runtime's attention"
    if version < _CUDNN_ANY_LENGTH:
        return f"{name} is used for prompts and caches of multiples of 64 tokens only"
    return None
