"""Locates a loss: weight error of every linear layer against the baseline, and the output error quantize reported."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from console.errors import InputError
from console.files import read_object, to_type
from console.progress import track
from runtime.compare.result import Layer
from runtime.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runtime.ort.manifest import Manifest

REPORT = "quantization_report.json"
_ADVICE = "copy it from where quantize wrote it, or remove it"
_UNQUANTIZED = 16  # bits
# A layer is suspect above this multiple of the median error of its bit width,
_TIMES_THE_MEDIAN = 4
_NEGLIGIBLE = 0.01  # but not below the error of 8-bit rounding,
_NO_ROUNDING = 0.5  # and always above this: 4-bit rounding gives 0.1
_ROWS = 4096  # compared at a time: a whole head of 153600 rows would take 3 GB


def check_layers(folder: Path, manifest: Manifest, baseline: Weights | None) -> None:
    """Raise InputError if layers differ in shape from the baseline's, or quantize's report cannot be read."""
    _reported(folder)
    if baseline is None:
        return
    weights = Weights(folder, manifest.weights)
    for name in sorted(set(baseline.linears()) & set(weights.linears())):
        shape, expected = list(weights.shape(name)), list(baseline.shape(name))
        if shape != expected:
            raise InputError(
                f"{folder}: {name}: {shape} weights, the baseline has {expected}; give folders of one model"
            )


def quantized_baseline_warning(weights: Weights) -> list[str]:
    """A warning if the baseline is itself quantized; empty for 16 bits."""
    bits = min(weights.bits(name) for name in weights.linears())
    if bits >= _UNQUANTIZED:
        return []
    return [f"The baseline is {bits}-bit, not FP16: differences are from it, not from the unquantized model."]


def list_layers(folder: Path, manifest: Manifest, baseline: Weights | None) -> list[Layer]:
    """List every linear layer of a folder that `check_layers` accepts, in alphabetical order."""
    weights, reported = Weights(folder, manifest.weights), _reported(folder)
    bits = {name: weights.bits(name) for name in weights.linears()}
    errors: dict[str, float] = {}
    if baseline is not None:
        shared = sorted(set(baseline.linears()) & bits.keys())
        errors = {name: _weight_error(baseline, weights, name) for name in track(shared, f"weights of {folder}")}
    suspects = _suspects(errors, bits)
    layers = []
    for name, width in bits.items():
        report = reported.get(name, _Reported(name))
        layers.append(Layer(name, width, errors.get(name), report.error, report.error_rtn, suspect=name in suspects))
    return layers


def _suspects(errors: Mapping[str, float], bits: Mapping[str, int]) -> set[str]:
    """Layers whose weight error is several times the median of their bit width, or too large for rounding."""
    by_width: dict[int, list[float]] = {}
    for name, error in errors.items():
        by_width.setdefault(bits[name], []).append(error)
    limits = {
        width: min(_NO_ROUNDING, max(_TIMES_THE_MEDIAN * median(same_width), _NEGLIGIBLE))
        for width, same_width in by_width.items()
    }
    return {name for name, error in errors.items() if error > limits[bits[name]]}


def _weight_error(baseline: Weights, weights: Weights, name: str) -> float:
    """‖W − Ŵ‖ / ‖W‖."""
    rows, _ = weights.shape(name)
    squared_error, squared_norm = 0.0, 0.0
    for start in range(0, rows, _ROWS):
        part = slice(start, start + _ROWS)
        expected = baseline.load(name, part)
        squared_error += float(np.square(expected - weights.load(name, part), dtype=np.float64).sum())
        squared_norm += float(np.square(expected, dtype=np.float64).sum())
    return math.sqrt(squared_error / squared_norm) if squared_norm else float(squared_error > 0)


@dataclass(frozen=True, config=ConfigDict(strict=True))
class _Report:
    """What is read of quantization_report.json."""

    linears: list[_Reported]
    """Every quantized linear."""


@dataclass(frozen=True, config=ConfigDict(strict=True))
class _Reported:
    """A linear in the report."""

    name: str
    """Its path in the model."""
    error: float | None = None
    """Relative error of its outputs;"""
    error_rtn: float | None = None
    """that of RTN."""


def _reported(folder: Path) -> dict[str, _Reported]:
    """Linear layers of quantization_report.json by name; empty without the file."""
    path = folder / REPORT
    if not path.is_file():
        return {}
    report = to_type(_Report, read_object(path, _ADVICE), path, _ADVICE)
    return {linear.name: linear for linear in report.linears}
