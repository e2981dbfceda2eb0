"""Opens ONNX Runtime sessions. Execution providers are chosen here only.

A session runs on the device that was asked for, or opening it is an error.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort
from onnxruntime.capi import _pybind_state

from console.errors import InputError
from runtime.ort.device import Device, require_device
from runtime.ort.huge_pages import use_huge_pages
from runtime.ort.manifest import AGAIN
from runtime.ort.out_of_memory import report_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ort.disable_telemetry_events()  # on Windows; elsewhere console.privacy does it before the import
# CUTLASS kernels (fpA_intB) multiply weights in blocks of 32 on a GPU. As a session opens they measure their fastest
# tiling for these numbers of rows; the last is the longest prompt chunk. The GPU keeps repacked weights only.
_CUTLASS = {
    "ep.cuda.fpa_intb_gemm": "1",
    "ep.cuda.fpa_intb_profile_m": "1,2,4,8,16,32,1024,4096",
    "session.use_device_allocator_for_initializers": "1",
}
_SAME_NAMES = ("float16", "bfloat16", "int8", "int64")
_DTYPES = {"tensor(float)": "float32"} | {f"tensor({name})": name for name in _SAME_NAMES}  # numpy's names
_WARNING, _ERROR, _FATAL = 2, 3, 4  # severities of ONNX Runtime's log


@dataclass(frozen=True)
class Options:
    """How sessions run."""

    threads: int | None = None
    """CPU threads; None for all cores."""
    memory_limit: int | None = None
    """Bytes of GPU memory for weights and activations of one graph, without the KV cache; None for all."""
    capture: bool = False
    """Replay decode steps as CUDA graphs."""
    cutlass: bool = False
    """Multiply packed weights in blocks of 32 with CUTLASS kernels on a GPU."""
    profile: Path | None = None
    """Folder for the profile that `placement` reads."""


def session_options(
    device: str, *, memory_limit: float | None = None, cuda_graph: bool = False, threads: int | None = None
) -> Options:
    """Options that users choose. memory_limit: GiB. Raises InputError for one that the device does not have."""
    if Device.parse(device).kind == "cpu" and (memory_limit is not None or cuda_graph):
        name = "--cuda-graph" if memory_limit is None else "--memory-limit"
        raise InputError(f"{name}: is for a GPU; give --device cuda too")
    limit = None if memory_limit is None else int(memory_limit * 2**30)
    return Options(threads=threads, memory_limit=limit, capture=cuda_graph)


def open_session(
    path: Path,
    device: Device,
    options: Options | None = None,
    *,
    varying_shapes: bool = False,
    graph: bytes | None = None,
) -> ort.InferenceSession:
    """Load a graph on a device. Raises InputError when the device or the graph cannot be used.

    varying_shapes: inputs change shape from call to call, so keep no memory pattern for a shape that was seen. graph:
    a model to load instead of the file at `path`, with weights in the same folder.
    """
    require_device(device)
    if not path.is_file():
        raise InputError(f"{path} is missing; run: python -m export --model {path.parent} --device {device.kind}")
    options = options or Options()
    settings = _settings(path, device, options)
    settings.enable_mem_pattern = not varying_shapes
    if graph is not None:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    advice = "quantize to fewer bits, or raise --memory-limit where it was given"
    try:
        with report_out_of_memory(f"the weights of {path}", advice), _no_warnings():
            # ONNX Runtime's own fallback would print, and run on the CPU what fails on a GPU.
            providers = [provider(device, options)]
            session = ort.InferenceSession(graph or path, settings, providers=providers, enable_fallback=0)
    except InputError:
        raise
    except Exception as error:  # ONNX Runtime has a class for each status code of a graph
        reason = " ".join(str(error).split())
        if isinstance(error, RuntimeError):  # a provider fails with this one
            raise InputError(f"{device.kind} was asked for but ONNX Runtime could not start it ({reason})") from error
        raise InputError(f"{path}: ONNX Runtime cannot load it ({reason}); run python -m export again") from error
    if session.get_providers()[0] != f"{device.kind.upper()}ExecutionProvider":
        raise InputError(f"{device.kind} was asked for but ONNX Runtime could not start it; see its message above")
    if device.kind == "cpu":
        use_huge_pages()
    return session


def require_inputs(session: ort.InferenceSession, inputs: Mapping[str, tuple[str, Sequence[int | None]]]) -> None:
    """Raise InputError unless a graph takes these inputs, by name: dtype, and shape with None for any length.

    Without it, another runtime.json would end in an error of a kernel, or in a cache of any size.
    """
    taken = {node.name: (_DTYPES.get(node.type, node.type), node.shape) for node in session.get_inputs()}
    for name, (dtype, shape) in inputs.items():
        found, dimensions = taken.get(name, (None, []))
        same = all(n is None or n == length for n, length in zip(shape, dimensions, strict=False))
        if found != dtype or len(dimensions) != len(shape) or not same:
            expected = f"{dtype} {['any' if n is None else n for n in shape]}"
            raise InputError(f"its input {name} is {found} {dimensions}, runtime.json says {expected}; {AGAIN}")


def _settings(path: Path, device: Device, options: Options) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = _FATAL  # errors are raised, too
    # Each session has its own threads. They would spin after a call, on the cores that the next graph needs.
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


def provider(device: Device, options: Options) -> tuple[str, dict[str, str]]:
    """Execution provider of a device, and its options."""
    if device.kind == "cpu":
        return "CPUExecutionProvider", {}
    cuda_options = {
        "device_id": str(device.index),
        "enable_cuda_graph": str(int(options.capture)),
        "arena_extend_strategy": "kSameAsRequested",  # not to the next power of two
    }
    if options.memory_limit is not None:
        cuda_options["gpu_mem_limit"] = str(options.memory_limit)
    return "CUDAExecutionProvider", cuda_options


@cache
def allocate_as_requested() -> None:
    """Let ONNX Runtime's GPU pool grow by the sizes of buffers. By powers of two, a third of it lies idle.

    A process has one pool, made at its first buffer, which no session option reaches. The only way is a deprecated
    function, which warns about itself.
    """
    with _no_warnings():
        _pybind_state.set_arena_extend_strategy(_pybind_state.ArenaExtendStrategy.kSameAsRequested)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence ONNX Runtime's warnings. Its errors stay: where it only drops CUDA, they alone say why."""
    ort.set_default_logger_severity(_ERROR)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def placement(session: ort.InferenceSession) -> list[tuple[str, str]]:
    """End the profiling of a session that has run. Returns operator and provider of each node that ran, Memcpy too."""
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    return sorted({node["node_index"]: (node["op_name"], node["provider"]) for node in nodes}.values())
