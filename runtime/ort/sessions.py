"""ONNX Runtime sessions and memory: the only file that names execution providers.

A session runs on the device that was asked for, or it is an error. Nothing is copied between host and device but what
`Buffer.write` and `Buffer.read` copy.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnxruntime.capi import _pybind_state
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from console.errors import InputError, NoMemoryError
from runtime.ort import graph_io, manifest
from runtime.ort.cuda import require_cuda
from runtime.ort.huge_pages import use_huge_pages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

# Have a card's products of blocks of 32 run in CUTLASS kernels (fpA_intB). Their fastest tiling is measured for so many
# rows as the session opens, the longest chunk of a prompt last; the repacked weights are the only copy on the card.
_CUTLASS = {
    "ep.cuda.fpa_intb_gemm": "1",
    "ep.cuda.fpa_intb_profile_m": "1,2,4,8,16,32,1024,4096",
    "session.use_device_allocator_for_initializers": "1",
}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16, which numpy has no type for
_WARNING, _ERROR, _FATAL = 2, 3, 4  # severities of ONNX Runtime's log
# How ONNX Runtime says that memory was refused: its allocators with the bytes asked for, C++, and CUDA and cuBLAS.
_REFUSED = re.compile(
    r"Failed to allocate memory for requested buffer of size (\d+)|smaller than requested bytes of (\d+)"
    r"|std::bad_alloc|CUDA failure 2:|CUBLAS failure 3:"
)
_NUMPY: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "uint8": np.uint8,
    "int8": np.int8,
    "int32": np.int32,
    "int64": np.int64,
}


@dataclass(frozen=True)
class Device:
    """Where sessions run. index: which of several cards."""

    kind: Literal["cpu", "cuda"]
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read "cpu", "cuda" or "cuda:1". Raises InputError for anything else."""
        found = re.fullmatch(r"cpu|cuda(?::(\d+))?", text)
        if not found:
            raise InputError(f'--device {text}: write "cpu", "cuda", or "cuda:1" for the second card')
        return cls("cpu" if text == "cpu" else "cuda", int(found[1] or 0))


HOST = Device("cpu")


@dataclass(frozen=True)
class Options:
    """How sessions run.

    threads: of the CPU; None for all cores. memory_limit: bytes on a card that the weights and activations of one graph
    may take, beside the KV cache; None for all. capture: replay decode steps as CUDA graphs. cutlass: multiply packed
    weights in blocks of 32 by CUTLASS kernels on a card. profile: a folder for the record that `placement` reads.
    """

    threads: int | None = None
    memory_limit: int | None = None
    capture: bool = False
    cutlass: bool = False
    profile: Path | None = None


def open_session(
    path: Path,
    device: Device,
    options: Options | None = None,
    *,
    give_back: bool = False,
) -> ort.InferenceSession:
    """Load a graph on a device. Raises InputError when the device or the graph cannot be used.

    give_back: for a graph whose inputs have another size each time: no memory is laid out, and kept, for a size that
    was seen.
    """
    require_device(device)
    if not path.is_file():
        raise InputError(f"{path} is missing; run: python -m export --model {path.parent} --device {device.kind}")
    options = options or Options()
    settings = _settings(path, device, options)
    settings.enable_mem_pattern = not give_back
    try:
        with (
            memory_for(f"the weights of {path}", "quantize to fewer bits, or raise --memory-limit where it was given"),
            _no_warnings(),
        ):
            # Its own fallback would print, and run on the CPU what does not start or fails on a card.
            session = ort.InferenceSession(path, settings, providers=[provider(device, options)], enable_fallback=0)
    except InputError:
        raise
    except Exception as error:  # ONNX Runtime raises a class of its own for each status code of a graph
        reason = " ".join(str(error).split())
        if isinstance(error, RuntimeError):  # and this for a provider
            raise InputError(f"{device.kind} was asked for but ONNX Runtime could not start it ({reason})") from error
        raise InputError(f"{path}: ONNX Runtime cannot load it ({reason}); run python -m export again") from error
    if session.get_providers()[0] != f"{device.kind.upper()}ExecutionProvider":
        raise InputError(f"{device.kind} was asked for but ONNX Runtime could not start it; see its message above")
    if device.kind == "cpu":
        use_huge_pages()
    return session


def _settings(path: Path, device: Device, options: Options) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = _FATAL  # what is only an error is raised too
    # Each session has threads of its own, which would spin after a call, on the cores that the next graph needs.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    if options.cutlass and device.kind == "cuda":
        for name, value in _CUTLASS.items():
            settings.add_session_config_entry(name, value)
    if options.profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(options.profile / path.stem)
    return settings


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Keep ONNX Runtime's warnings off the screen. Its errors stay: where it only drops CUDA, they alone say why."""
    ort.set_default_logger_severity(_ERROR)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


@contextmanager
def memory_for(what: str, advice: str) -> Iterator[None]:
    """Say in one line what there was no memory for in a block, on the host or a card; every other error goes on."""
    try:
        yield
    except (MemoryError, RuntimeError, ort_errors.Fail, ort_errors.RuntimeException) as error:
        refused = _REFUSED.search(str(error))
        if refused is None and not isinstance(error, MemoryError):
            raise
        asked = refused and next(filter(None, refused.groups()), None)
        size = f", {math.ceil(int(asked) / 2**20)} MiB more in one piece" if asked else ""
        raise NoMemoryError(f"out of memory for {what}{size}; {advice}") from error


def placement(session: ort.InferenceSession) -> list[tuple[str, str]]:
    """End the profiling of a session that has run: operator and provider of every node that ran, Memcpy too."""
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    return sorted({node["node_index"]: (node["op_name"], node["provider"]) for node in nodes}.values())


def map_stored(folder: Path, stored: manifest.StoredArray) -> NDArray[np.generic]:
    """A tensor of a model folder, in the file that it lies in."""
    return np.memmap(folder / stored.file, _NUMPY[stored.dtype], "r", stored.offset, tuple(stored.shape))


def provider(device: Device, options: Options) -> tuple[str, dict[str, str]]:
    """The execution provider of a device, and what it is told: of a card's memory, to take no more than is needed."""
    if device.kind == "cpu":
        return "CPUExecutionProvider", {}
    told = {
        "device_id": str(device.index),
        "enable_cuda_graph": str(int(options.capture)),
        "arena_extend_strategy": "kSameAsRequested",  # not to the next power of two
    }
    if options.memory_limit is not None:
        told["gpu_mem_limit"] = str(options.memory_limit)
    return "CUDAExecutionProvider", told


def require_device(device: Device) -> None:
    """Fail with the name of what is missing for a GPU, where ONNX Runtime alone would fall back to the CPU."""
    if device.kind == "cuda":
        require_cuda(device.index)


@cache
def _take_only_what_is_needed() -> None:
    """Have buffers on a card grow ONNX Runtime's pool by their own sizes: by powers of two, a third of it lies idle.

    The pool is one for a process, made at its first buffer, and no option of a session reaches it: the one way is a
    deprecated function, which warns about itself.
    """
    with _no_warnings():
        _pybind_state.set_arena_extend_strategy(_pybind_state.ArenaExtendStrategy.kSameAsRequested)


@dataclass(frozen=True)
class Buffer:
    """A tensor in a device's memory, or a stretch of one, at an address that does not change."""

    owner: ort.OrtValue  # keeps the memory alive
    address: int
    shape: tuple[int, ...]
    dtype: str
    device: Device

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: str, device: Device) -> Buffer:
        """Memory with no particular content."""
        if device.kind == "cuda":
            _take_only_what_is_needed()
        # ONNX Runtime gives no array of bfloat16, so its bytes are held as uint16; a graph hears the type when bound.
        held = np.uint16 if dtype == "bfloat16" else _NUMPY[dtype]
        value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), held, device.kind, device.index)
        return cls(value, value.data_ptr(), shape, dtype, device)

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: str, device: Device) -> Buffer:
        """Memory that kernels may read before anything was written to it: zeros on a GPU.

        On the CPU no kernel reads so far, and pages that nobody wrote to take no memory.
        """
        buffer = cls.empty(shape, dtype, device)
        if device.kind == "cuda":
            buffer.write(np.zeros(shape, _NUMPY[dtype]))
        return buffer

    @classmethod
    def of(cls, array: NDArray[np.generic], dtype: str, device: Device) -> Buffer:
        """Copy an array into memory of its own, as another type where the graph wants one."""
        buffer = cls.empty(array.shape, dtype, device)
        buffer.write(array)
        return buffer

    def stretch(self, start: int, shape: tuple[int, ...]) -> Buffer:
        """View elements from `start` on as another shape; it can be bound, not read or written."""
        assert start + math.prod(shape) <= math.prod(self.shape)
        return replace(self, address=self.address + start * itemsize(self.dtype), shape=shape)

    def write(self, array: NDArray[np.generic]) -> None:
        """Copy an array of this shape from the host."""
        raw = np.ascontiguousarray(array, dtype=_NUMPY[self.dtype])
        self.owner.update_inplace(raw.view(np.uint16) if self.dtype == "bfloat16" else raw)

    def read(self) -> NDArray[np.generic]:
        """Copy to the host."""
        return np.array(self.owner.numpy()).view(_NUMPY[self.dtype])  # on the CPU, ONNX Runtime gives a view

    def bind_input(self, binding: ort.IOBinding, name: str) -> None:
        """Make it an input of a graph."""
        kind, index = self.device.kind, self.device.index
        binding.bind_input(name, kind, index, _element_type(self.dtype), self.shape, self.address)

    def bind_output(self, binding: ort.IOBinding, name: str) -> None:
        """Make it an output of a graph."""
        kind, index = self.device.kind, self.device.index
        binding.bind_output(name, kind, index, _element_type(self.dtype), self.shape, self.address)


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return int(np.dtype(_NUMPY[dtype]).itemsize)


def _element_type(dtype: str) -> Any:  # noqa: ANN401 - numpy's types, and an integer for the one it has not
    return _BFLOAT16 if dtype == "bfloat16" else _NUMPY[dtype]


class VisionSession:
    """The vision graph: patches and their indices in, image embeddings out. Its activations are given back each time.

    At the largest image they are as large as the KV cache of a long context, which is filled after them.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        cuda = session.get_provider_options().get("CUDAExecutionProvider")
        arena = "cpu:0" if cuda is None else f"gpu:{cuda['device_id']}"
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Embeddings [P / merge^2, H] of images and frames; feeds by the names of `manifest.VISION_INPUTS`."""
        advice = "give smaller images or a lower --fps, or raise --memory-limit where it was given"
        with memory_for(f"pictures of {len(feeds[graph_io.PATCHES])} patches", advice):
            (embeds,) = self._session.run([graph_io.IMAGE_EMBEDS], dict(feeds), self._options)
        return np.asarray(embeds, dtype=np.float32)
