"""Turns ONNX Runtime's errors at run time into one line: out of memory, and graphs that it cannot run."""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from console.errors import InputError, NoMemoryError
from console.text import shorten
from runtime.ort.manifest import AGAIN

if TYPE_CHECKING:
    from collections.abc import Iterator

# ONNX Runtime's allocators name the bytes asked for; C++, CUDA and cuBLAS do not.
_OUT_OF_MEMORY = re.compile(
    r"Failed to allocate memory for requested buffer of size (\d+)|smaller than requested bytes of (\d+)"
    r"|std::bad_alloc|CUDA failure 2:|CUBLAS failure 3:"
)


class FailedRunError(InputError):
    """ONNX Runtime could not run a graph: it is damaged, or the device has failed."""


@contextmanager
def report_out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Raise NoMemoryError where a block runs out of host or GPU memory. Other errors pass unchanged.

    what: what the memory was for. advice: what to do about it.
    """
    try:
        yield
    except (MemoryError, RuntimeError, ort_errors.Fail, ort_errors.RuntimeException) as error:
        match = _OUT_OF_MEMORY.search(str(error))
        if match is None and not isinstance(error, MemoryError):
            raise
        requested = match and next(filter(None, match.groups()), None)
        size = f", {math.ceil(int(requested) / 2**20)} MiB more in one piece" if requested else ""
        raise NoMemoryError(f"out of memory for {what}{size}; {advice}") from error


@contextmanager
def report_failed_run(what: str) -> Iterator[None]:
    """Raise FailedRunError where ONNX Runtime cannot run a graph, as one that does not belong to runtime.json.

    what: the call. Out of memory passes: `report_out_of_memory` has the advice.
    """
    try:
        yield
    except Exception as error:  # ONNX Runtime has a class for each status code
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
            raise
        reason = shorten(" ".join(str(error).split()), 500)
        raise FailedRunError(f"ONNX Runtime cannot run {what} ({reason}); {AGAIN}") from error
