"""Which layer a loss may come from: every linear's weights against the baseline's, and what quantize reported of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from console.errors import InputError
from console.progress import track
from runtime.weights import Weights

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.ort.manifest import Manifest

REPORT = "quantization_report.json"
_UNQUANTIZED = 16  # bits
_TIMES_THE_MEDIAN = 4
_NOTHING = 0.01  # weights that differ by less than rounding to 8 bits makes are not suspected
_BROKEN = 0.5  # four bits make 0.1; half of the size of all weights is no rounding
_ROWS = 4096  # at a time: all of a head of 153600 rows would take 3 GB


@dataclass(frozen=True)
class Layer:
    """One linear of a candidate.

    error: ‖W − Ŵ‖ / ‖W‖ against the baseline's weights; None where the baseline has none. reported, reported_rtn: what
    quantize measured, ‖(W − Ŵ)X‖² / ‖WX‖², as solved and for round-to-nearest; None where it measured nothing.
    suspect: its error is several times that of others of as many bits, or no rounding at all.
    """

    name: str
    bits: int
    error: float | None
    reported: float | None
    reported_rtn: float | None
    suspect: bool


def require_listable(folder: Path, manifest: Manifest, baseline: Weights | None) -> None:
    """Raise InputError for a folder of another model than the baseline's, or with a report that cannot be read."""
    _reported(folder)
    if baseline is None:
        return
    weights = Weights(folder, manifest.weights)
    for name in sorted(set(baseline.linears()) & set(weights.linears())):
        own, expected = list(weights.shape(name)), list(baseline.shape(name))
        if own != expected:
            raise InputError(f"{folder}: {name}: {own} weights, the baseline has {expected}; give folders of one model")


def of_baseline(weights: Weights) -> list[str]:
    """What a baseline that is itself quantized keeps from being told; nothing for one of 16 bits."""
    bits = min(weights.bits(name) for name in weights.linears())
    if bits >= _UNQUANTIZED:
        return []
    return [f"The baseline is {bits}-bit, not FP16: all differences are from it, not from the unquantized model."]


def list_layers(folder: Path, manifest: Manifest, baseline: Weights | None) -> list[Layer]:
    """List every linear of a folder, in alphabetical order. Folders are those that `require_listable` takes."""
    weights, reported = Weights(folder, manifest.weights), _reported(folder)
    bits = {name: weights.bits(name) for name in weights.linears()}
    errors: dict[str, float] = {}
    if baseline is not None:
        shared = sorted(set(baseline.linears()) & bits.keys())
        errors = {name: _error(baseline, weights, name) for name in track(shared, f"weights of {folder}")}
    usual = {
        count: median(error for name, error in errors.items() if bits[name] == count)
        for count in set(bits.values())
        if any(bits[name] == count for name in errors)
    }
    found = []
    for name, count in bits.items():
        error, said = errors.get(name), reported.get(name, {})
        suspect = error is not None and error > min(_BROKEN, max(_TIMES_THE_MEDIAN * usual[count], _NOTHING))
        found.append(Layer(name, count, error, said.get("error"), said.get("error_rtn"), suspect))
    return found


def _error(baseline: Weights, weights: Weights, name: str) -> float:
    rows, _ = weights.shape(name)
    apart, size = 0.0, 0.0
    for start in range(0, rows, _ROWS):
        part = slice(start, start + _ROWS)
        expected = baseline.load(name, part)
        apart += float(np.square(expected - weights.load(name, part), dtype=np.float64).sum())
        size += float(np.square(expected, dtype=np.float64).sum())
    return math.sqrt(apart / size) if size else float(apart > 0)


def _reported(folder: Path) -> dict[str, dict[str, Any]]:
    """Linears of quantization_report.json by name; none where there is no such file."""
    path = folder / REPORT
    if not path.is_file():
        return {}
    try:
        return {linear["name"]: linear for linear in json.loads(path.read_text(encoding="utf-8"))["linears"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not a report that quantize wrote ({error})") from error
