"""Quantizers: the values that a quantized weight can take, and RTN (round to nearest).

A weight W [N, K] has one row per output. Every `group_size` consecutive inputs of a row share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = 8192  # rows processed together, to bound memory: rows are independent
CACHED = 2**18  # weights that stay in the cache of a CPU, which goes through them many times
SHARES = tuple(0.5 + 0.025 * i for i in range(25))  # candidates: 0.5 to 1.1 of the scale that clips nothing

# The 16 quantiles of QLoRA (Dettmers et al. 2023, appendix E), as bitsandbytes stores them.
NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class Quantizer(Protocol):
    """Turns weights into small integers (codes) and one scale per group, and back."""

    @property
    def bits(self) -> int:
        """Bits of a code."""
        ...

    @property
    def group_size(self) -> int:
        """Consecutive inputs that share a scale."""
        ...

    def fit(self, W: torch.Tensor) -> torch.Tensor:
        """Choose scales [N, K / group_size] that cover the largest weight of each group of W [N, K]."""
        ...

    def candidates(self, W: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield scales [N, K / group_size] to choose from: with and without clipping, of either sign."""
        ...

    def round_scales(self, scale: torch.Tensor) -> torch.Tensor:
        """Round scales to the dtype of the checkpoint. Integer quantizers divide by them: theirs are never zero."""
        ...

    def round(self, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Round weights to the codes (int8) of the nearest values. Weights and scales broadcast."""
        ...

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Compute the weights (float32) of codes and scales, which broadcast."""
        ...


@dataclass(frozen=True)
class UniformQuantizer:
    """Symmetric integers -2^(bits-1) .. 2^(bits-1)-1 times a scale, as MatMulNBits computes them."""

    bits: int
    """Bits of a code: 4 or 8."""
    group_size: int
    """Consecutive inputs that share a scale."""
    dtype: torch.dtype = torch.float16
    """Dtype of scales in the checkpoint."""

    def fit(self, W: torch.Tensor) -> torch.Tensor:
        """Choose scales that put the largest weight of a group half a step inside the range."""
        return self.round_scales(signed_maxima(W, self).abs() / (2 ** (self.bits - 1) - 0.5))

    def candidates(self, W: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield 0.5 to 1.1 of the scales of `fit`; every second one gives the largest weight the code -2^(bits-1).

        There is one negative code more than positive ones. A negative scale gives it to positive weights.
        """
        top = signed_maxima(W, self)
        for share in SHARES:
            yield self.round_scales(top.abs() * (share / (2 ** (self.bits - 1) - 0.5)))
            yield self.round_scales(top * (-share / 2 ** (self.bits - 1)))

    def round_scales(self, scale: torch.Tensor) -> torch.Tensor:
        """Round to `dtype`, away from zero for a group of zeros or of weights too small for it.

        The smallest scale is subnormal in float16: 8 bits of weights up to 0.0078 need it.
        """
        smallest = 2.0**-24 if self.dtype == torch.float16 else 2.0**-126
        rounded = scale.to(self.dtype)
        return torch.where(rounded.abs() < smallest, torch.full_like(rounded, smallest), rounded)

    def round(self, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Round weights to the codes of the nearest values, with the rounded scale."""
        top = 2 ** (self.bits - 1)
        codes: torch.Tensor = torch.round(w / scale.to(w.dtype)).clamp(-top, top - 1).to(torch.int8)
        return codes

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Compute the weights of codes."""
        return codes.float() * scale.float()


@cache
def _nf4(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of the codebook, and the midpoints between them."""
    values = torch.tensor(NF4_VALUES, device=device)
    return values, (values[:-1] + values[1:]) / 2


@dataclass(frozen=True)
class NF4Quantizer:
    """The NF4 codebook times a float32 scale: bitsandbytes' format without double quantization."""

    group_size: int = 64
    """Consecutive inputs that share a scale: a block of bitsandbytes."""
    bits: int = 4
    """Bits of a code."""

    def fit(self, W: torch.Tensor) -> torch.Tensor:
        """Choose the largest magnitude of each block as its scale."""
        return signed_maxima(W, self).abs()

    def candidates(self, W: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield 0.5 to 1.1 of the scales of `fit`; negative ones mirror the codebook, which is not symmetric."""
        top = signed_maxima(W, self)
        for share in SHARES:
            yield top.abs() * share
            yield top.abs() * -share

    def round_scales(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales are float32 in the checkpoint."""
        return scale.float()

    def round(self, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Round weights to codes 0..15 with the arithmetic of bitsandbytes, so that ties fall as they do there."""
        unit = (w * (1.0 / torch.where(scale.abs() < 1e-38, 1e-38, scale))).clamp_(-1, 1)
        return torch.bucketize(unit, _nf4(w.device)[1], out_int32=True).to(torch.int8)

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Compute the weights of codes."""
        return _nf4(codes.device)[0][codes.int()] * scale


def signed_maxima(W: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """Find the weight of the largest magnitude, with its sign, of every group of W [N, K].

    Returns float32 [N, K / group_size].
    """
    groups = W.float().reshape(len(W), -1, quantizer.group_size)
    return groups.gather(-1, groups.abs().argmax(-1, keepdim=True))[..., 0]


def fit_weighted(W: torch.Tensor, diagonal: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """Choose among the quantizer's candidates the scales of least Σ h (w − ŵ)² in each group of W [N, K].

    diagonal [K]: the h of each input, from the damped Hessian, so that an input that was never used still counts.
    Returns [N, K / group_size].
    """
    rows = max(CACHED // W.shape[1], 1) if W.device.type == "cpu" else ROWS
    return torch.cat([_fit_rows(part, diagonal, quantizer) for part in W.split(rows)])


def _fit_rows(W: torch.Tensor, diagonal: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    best, least = (
        quantizer.fit(W),
        torch.full((len(W), W.shape[1] // quantizer.group_size), float("inf"), device=W.device),
    )
    for scales in quantizer.candidates(W):
        scale = expand(scales, quantizer)
        errors = (W - quantizer.values(quantizer.round(W, scale), scale)).square_().mul_(diagonal)
        error = errors.unflatten(-1, (-1, quantizer.group_size)).sum(-1)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return best


def rtn(W: torch.Tensor, quantizer: Quantizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize W [N, K] by RTN: every weight to its nearest value. Returns codes [N, K], scales [N, K / group_size].

    NF4 codes come from bitsandbytes' own quantizer.
    """
    codes, scales = zip(*(_rtn_rows(rows, quantizer) for rows in W.split(ROWS)), strict=True)
    return torch.cat(codes), torch.cat(scales)


def _rtn_rows(W: torch.Tensor, quantizer: Quantizer) -> tuple[torch.Tensor, torch.Tensor]:
    scales = quantizer.fit(W)
    if isinstance(quantizer, NF4Quantizer):
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(W.contiguous(), blocksize=quantizer.group_size, quant_type="nf4")
        return unpack_nibbles(packed).view(W.shape), state.absmax.view_as(scales)
    return quantizer.round(W.float(), expand(scales, quantizer)), scales


def expand(scales: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """Repeat scales [N, K / group_size] to [N, K], one per weight."""
    return scales.repeat_interleave(quantizer.group_size, dim=-1)


def dequantize(codes: torch.Tensor, scales: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """Compute the weights [N, K] (float32) of codes [N, K] and scales [N, K / group_size]."""
    W = torch.empty(codes.shape, device=codes.device)
    for rows, row_codes, row_scales in zip(W.split(ROWS), codes.split(ROWS), scales.split(ROWS), strict=True):
        rows.copy_(quantizer.values(row_codes, expand(row_scales, quantizer)))
    return W


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes 0..15 two per byte, the first in the high half, as bitsandbytes does. Returns uint8 [numel / 2, 1]."""
    flat = codes.reshape(-1).to(torch.uint8)
    return ((flat[::2] << 4) | flat[1::2]).unsqueeze(1)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Undo `pack_nibbles`. Returns int8 [2 * numel]."""
    flat = packed.reshape(-1)
    return torch.stack([flat >> 4, flat & 15], dim=1).reshape(-1).to(torch.int8)
