"""Which layer a loss may come from: every linear's weights against the baseline's, and what quantize reported of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from calib_data.errors import InputError
from runtime.weights import Weights

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.bundle import Bundle

REPORT = "quantization_report.json"
_TIMES_THE_MEDIAN = 4
_NOTHING = 0.01  # weights that differ by less than rounding to 8 bits makes are not suspected


@dataclass(frozen=True)
class Layer:
    """One linear of a candidate.

    error: ‖W − Ŵ‖ / ‖W‖ against the baseline's weights; None where the baseline has none. reported, reported_rtn: what
    quantize measured, ‖(W − Ŵ)X‖² / ‖WX‖², as solved and for round-to-nearest; None where it measured nothing.
    suspect: its error is several times that of others of as many bits.
    """

    name: str
    bits: int
    error: float | None
    reported: float | None
    reported_rtn: float | None
    suspect: bool


def list_layers(folder: Path, bundle: Bundle, baseline: Weights | None) -> list[Layer]:
    """List every linear of a folder, in alphabetical order. Raises InputError for folders of two models."""
    weights, reported = Weights(folder, bundle.weights), _reported(folder)
    names = weights.linears()
    bits = {name: weights.bits(name) for name in names}
    errors = {name: _error(baseline.load(name), weights.load(name), name) for name in names} if baseline else {}
    usual = (
        {count: median(errors[name] for name in names if bits[name] == count) for count in set(bits.values())}
        if (errors)
        else {}
    )
    return [
        Layer(
            name,
            bits[name],
            errors.get(name),
            reported.get(name, {}).get("error"),
            reported.get(name, {}).get("error_rtn"),
            bool(errors) and errors[name] > max(_TIMES_THE_MEDIAN * usual[bits[name]], _NOTHING),
        )
        for name in names
    ]


def _error(expected: np.ndarray, found: np.ndarray, name: str) -> float:
    if expected.shape != found.shape:
        raise InputError(f"{name}: {list(found.shape)} weights, the baseline has {list(expected.shape)}")
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(expected - found)) / norm if norm else float(np.any(found))


def _reported(folder: Path) -> dict[str, dict[str, Any]]:
    """Linears of quantization_report.json by name; none where there is no such file."""
    path = folder / REPORT
    if not path.is_file():
        return {}
    try:
        return {linear["name"]: linear for linear in json.loads(path.read_text())["linears"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not a report that quantize wrote ({error})") from error
