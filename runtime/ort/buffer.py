"""Tensors at fixed addresses in a device's memory. Only `Buffer.write` and `Buffer.read` copy to and from the host."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ml_dtypes  # noqa: F401 - lets numpy know "bfloat16"
import numpy as np
import onnxruntime as ort

from runtime.ort.sessions import allocate_as_requested

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.ort.device import Device

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16: ONNX Runtime takes this number where numpy has no type


@dataclass(frozen=True)
class Buffer:
    """A tensor in a device's memory, or a view of one, at an address that does not change."""

    owner: ort.OrtValue
    """Keeps the memory alive."""
    address: int
    """Of the first element."""
    shape: tuple[int, ...]
    """Row-major."""
    dtype: str
    """As numpy names it, or "bfloat16"."""
    device: Device
    """Where the memory is."""

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: str, device: Device) -> Buffer:
        """Allocate memory with no particular content."""
        if device.kind == "cuda":
            allocate_as_requested()
        value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), _stored(dtype), device.kind, device.index)
        return cls(value, value.data_ptr(), shape, dtype, device)

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: str, device: Device) -> Buffer:
        """Allocate memory that kernels may read before anything was written to it: zeros on a GPU.

        No CPU kernel reads it so far, and pages that were never written to take no memory.
        """
        buffer = cls.empty(shape, dtype, device)
        if device.kind == "cuda":
            buffer.write(np.zeros(shape, dtype))
        return buffer

    @classmethod
    def from_array(cls, array: NDArray[np.generic], dtype: str, device: Device) -> Buffer:
        """Copy an array into new memory, converted to `dtype`."""
        buffer = cls.empty(array.shape, dtype, device)
        buffer.write(array)
        return buffer

    def view(self, start: int, shape: tuple[int, ...]) -> Buffer:
        """View elements from `start` on as another shape. A view can be bound, not read or written."""
        assert start + math.prod(shape) <= math.prod(self.shape)
        return replace(self, address=self.address + start * np.dtype(self.dtype).itemsize, shape=shape)

    def write(self, array: NDArray[np.generic]) -> None:
        """Copy an array of this shape from the host."""
        raw = np.ascontiguousarray(array, dtype=self.dtype)
        self.owner.update_inplace(raw.view(np.uint16) if self.dtype == "bfloat16" else raw)

    def read(self) -> NDArray[np.generic]:
        """Copy to the host."""
        return np.array(self.owner.numpy()).view(self.dtype)  # on the CPU, ONNX Runtime returns a view

    def clear(self, binding: ort.IOBinding, output: str) -> None:
        """Write zeros, to a view too. binding: a new one, of any session that has this output."""
        stored, device = _stored(self.dtype), self.device
        binding.bind_output(output, device.kind, device.index, stored, self.shape, self.address)
        (view,) = binding.get_outputs()  # the only way to a value over a part of another's memory
        view.update_inplace(np.zeros(self.shape, stored))

    def bind_input(self, binding: ort.IOBinding, name: str) -> None:
        """Make it an input of a graph."""
        binding.bind_input(name, self.device.kind, self.device.index, self._element_type, self.shape, self.address)

    def bind_output(self, binding: ort.IOBinding, name: str) -> None:
        """Make it an output of a graph."""
        binding.bind_output(name, self.device.kind, self.device.index, self._element_type, self.shape, self.address)

    @property
    def _element_type(self) -> type[np.generic] | int:
        return _BFLOAT16 if self.dtype == "bfloat16" else np.dtype(self.dtype).type


def _stored(dtype: str) -> type[np.generic]:
    """The type of a buffer's own memory; graphs get that of its content when they are bound.

    ONNX Runtime returns no numpy array of bfloat16.
    """
    return np.dtype("uint16" if dtype == "bfloat16" else dtype).type
