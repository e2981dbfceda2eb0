"""ONNX Runtime sessions: the only file that names execution providers and binds inputs and outputs.

A session runs on the device that was asked for, or it is an error. KV buffers are allocated once per sequence, bound as
input and output of every step, and never copied; a step moves the embedded tokens, two lengths, the index and the
logits, nothing else.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Literal

import ml_dtypes
import numpy as np
import onnxruntime as ort

from calib_data.errors import InputError
from runtime import bundle as io
from runtime.cache import buffer_shapes
from runtime.rope import rope_tables

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from runtime.bundle import Text

Device = Literal["cpu", "cuda"]

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16, which numpy has no type for
_NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def open_session(path: Path, device: Device, *, give_back: bool = False) -> ort.InferenceSession:
    """Load a graph on a device. Raises InputError when the device or the graph cannot be used.

    give_back: for a graph whose inputs have another size each time: no memory is laid out, and kept, for a size that
    was seen, and no more is taken from a card than is needed (ONNX Runtime takes twice as much each time).
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = not give_back
    if device == "cuda":
        _require_cuda()
    providers = [f"{device.upper()}ExecutionProvider"]
    told = {"arena_extend_strategy": "kSameAsRequested"} if give_back and device == "cuda" else {}
    if not path.is_file():
        raise InputError(f"{path} is missing; run: python -m export --model {path.parent} --target {device}")
    try:
        session = ort.InferenceSession(path, options, providers=providers, provider_options=[told])
    except Exception as error:  # ONNX Runtime raises a class of its own for each status code
        raise InputError(f"{path}: ONNX Runtime cannot load it ({error}); run python -m export again") from error
    if session.get_providers()[0] != providers[0]:
        raise InputError(f"{device} was asked for but ONNX Runtime could not start it; see its message above")
    return session


def _require_cuda() -> None:
    """Fail with the name of what is missing, where ONNX Runtime alone would fall back to the CPU."""
    advice = "install onnxruntime-gpu, its CUDA libraries and an NVIDIA driver, or use --device cpu"
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise InputError(f"CUDA was asked for but this onnxruntime has no CUDA provider; {advice}")
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        raise InputError(f"CUDA was asked for but there is no NVIDIA driver ({error}); {advice}") from error
    ort.preload_dlls()  # finds the libraries of the nvidia wheels, which are on no search path


def to_ort(array: NDArray[np.floating], dtype: str, device: Device = "cpu") -> ort.OrtValue:
    """A tensor of one of the graphs' float types on a device, from an array of any."""
    raw = np.ascontiguousarray(array, dtype=_NUMPY[dtype])
    if dtype == "bfloat16":
        raw = raw.view(np.uint16)
    value = ort.OrtValue.ortvalue_from_shape_and_type(raw.shape, _element_type(dtype), device, 0)
    value.update_inplace(raw)
    return value


def _element_type(dtype: str) -> int | type[np.generic]:
    return _BFLOAT16 if dtype == "bfloat16" else _NUMPY[dtype]


class KVCache:
    """The buffers of one sequence on the device, RoPE tables of the same length, and how far they are filled."""

    def __init__(self, text: Text, dtype: str, device: Device, room: int) -> None:
        self.room = room
        self.length = 0
        self.buffers = [
            ort.OrtValue.ortvalue_from_shape_and_type(shape, _element_type(dtype), device, 0)
            for shape in buffer_shapes(text, batch=1, room=room)
            for _ in ("key", "value")
        ]
        self.rope_cos, self.rope_sin = (to_ort(table, dtype, device) for table in rope_tables(text.rope, room))


class DecoderSession:
    """The decoder graph: tokens in, logits out, the cache extended in place."""

    def __init__(self, session: ort.InferenceSession, text: Text, dtype: str, device: Device) -> None:
        self._session = session
        self._text, self._dtype, self._device = text, dtype, device

    def new_cache(self, room: int) -> KVCache:
        """Buffers for a sequence of up to `room` tokens."""
        return KVCache(self._text, self._dtype, self._device, room)

    def run(self, cache: KVCache, embeds: NDArray[np.float32], wanted: NDArray[np.int64]) -> NDArray[np.float32]:
        """Extend the cache by embeds [T, H] and return logits [L, V] at the `wanted` [L] of these T positions."""
        tokens = embeds.shape[0]
        total = cache.length + tokens
        if total > cache.room:
            raise ValueError(f"{total} tokens do not fit a cache of {cache.room}")
        logits = np.empty((1, len(wanted), self._text.vocab_size), np.float32)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(io.INPUTS_EMBEDS, to_ort(embeds[None], self._dtype))
        binding.bind_cpu_input(io.SEQLENS_K, np.array([total - 1], np.int32))
        binding.bind_cpu_input(io.TOTAL_SEQUENCE_LENGTH, np.array(total, np.int32))
        binding.bind_cpu_input(io.LOGIT_INDEX, wanted[None])
        binding.bind_ortvalue_input(io.ROPE_COS, cache.rope_cos)
        binding.bind_ortvalue_input(io.ROPE_SIN, cache.rope_sin)
        layers = len(self._text.windows)
        for past, present, buffer in zip(io.past_names(layers), io.present_names(layers), cache.buffers, strict=True):
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)
        binding.bind_output(io.LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        cache.length = total
        answer: NDArray[np.float32] = logits[0]
        return answer


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
        """Embeddings [P / merge^2, H] of images and frames; feeds by the names of `bundle.VISION_INPUTS`."""
        (embeds,) = self._session.run([io.IMAGE_EMBEDS], dict(feeds), self._options)
        return np.asarray(embeds, dtype=np.float32)
