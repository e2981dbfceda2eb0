"""How far a graph may be from the PyTorch module it was traced from, relative to the module's largest value."""

from __future__ import annotations

EXACT = 2e-5  # weights dequantized inside the kernel, sums in another order
VISION = 1e-4  # the trained vision encoder magnifies rounding
INT8_ACTIVATIONS = 0.08  # the module rounds to int8, too, but a value may fall on the other side of a rounding step
INT8_KV = 0.02  # the same for keys and values
ROUNDING = 4.0
"""Factor for graphs that compute in 16 bits.

Their tolerance is this times the error of the PyTorch module when it computes in 16 bits. Both are samples of one
rounding error. With sums and roundings in another order it grew 2.5-fold at most (docs/architecture.md).
"""


def tolerance(*, vision: bool, int8_activations: bool, int8_kv: bool, rounding_error: float | None) -> float:
    """The largest error that passes.

    rounding_error: error of the module in 16 bits, for a graph that computes in 16 bits; None in float32.
    """
    bounds = [VISION if vision else EXACT]
    if int8_activations:
        bounds.append(INT8_ACTIVATIONS)
    if int8_kv:
        bounds.append(INT8_KV)
    if rounding_error is not None:
        bounds.append(ROUNDING * rounding_error)
    return max(bounds)
