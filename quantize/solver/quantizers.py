"""The values a quantized weight can take: what a solver rounds to.

Weights are matrices W [N, K], one row an output. Every `group_size` consecutive inputs of a row share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS = 8192  # rows worked on together, to bound memory: they do not know of each other
CACHED = 2**18  # weights that a CPU goes through many times, while they stay in its cache
SHARES = tuple(0.5 + 0.025 * i for i in range(25))  # of the scale that covers the largest weight: 0.5 to 1.1

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
    """A grid turns weights into small integers (codes) and a scale a group, and back."""

    @property
    def bits(self) -> int:
        """Bits of a code."""
        ...

    @property
    def group_size(self) -> int:
        """Consecutive inputs that share a scale."""
        ...

    def fit(self, W: torch.Tensor) -> torch.Tensor:
        """Scales [N, K / group_size] of W [N, K], as they are stored, that cover the largest weight of each group."""
        ...

    def candidates(self, W: torch.Tensor) -> Iterator[torch.Tensor]:
        """Scales like those of `fit`, and others that clip the largest weights or use one code more, to choose from."""
        ...

    def stored(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales as they are stored, in their dtype; integers divide by them, so theirs are never zero."""
        ...

    def round(self, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes (int8) of the nearest values, for weights and scales that broadcast."""
        ...

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Weights (float32) that codes and scales, which broadcast, stand for."""
        ...


@dataclass(frozen=True)
class UniformQuantizer:
    """Whole numbers -2^(bits-1) .. 2^(bits-1)-1 times a scale: symmetric integers, as MatMulNBits computes them."""

    bits: int
    group_size: int
    dtype: torch.dtype = torch.float16

    def fit(self, W: torch.Tensor) -> torch.Tensor:
        """Choose scales such that the largest weight of a group is half a step inside the range, rounded to `dtype`."""
        return self.stored(largest(W, self).abs() / (2 ** (self.bits - 1) - 0.5))

    def candidates(self, W: torch.Tensor) -> Iterator[torch.Tensor]:
        """Take half to 1.1 of the scales; every second one gives the largest weight of a group the code -2^(bits-1).

        There is one negative code more than there are positive ones, and a negative scale lets either side have it.
        """
        top = largest(W, self)
        for share in SHARES:
            yield self.stored(top.abs() * (share / (2 ** (self.bits - 1) - 0.5)))
            yield self.stored(top * (-share / 2 ** (self.bits - 1)))

    def stored(self, scale: torch.Tensor) -> torch.Tensor:
        """Round to `dtype`. A group of zeros, or one too small for it, still needs something to divide by.

        That is the smallest number (a subnormal one in float16, where it matters: 8 bits of weights up to 0.0078 need
        it).
        """
        smallest = 2.0**-24 if self.dtype == torch.float16 else 2.0**-126
        rounded = scale.to(self.dtype)
        return torch.where(rounded.abs() < smallest, torch.full_like(rounded, smallest), rounded)

    def round(self, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes of the nearest values, computed with the scale as it is stored."""
        top = 2 ** (self.bits - 1)
        codes: torch.Tensor = torch.round(w / scale.to(w.dtype)).clamp(-top, top - 1).to(torch.int8)
        return codes

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Weights that the codes stand for."""
        return codes.float() * scale.float()


@cache
def _nf4(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of the codebook, and the middles between neighbours."""
    values = torch.tensor(NF4_VALUES, device=device)
    return values, (values[:-1] + values[1:]) / 2


@dataclass(frozen=True)
class NF4Quantizer:
    """The NF4 codebook times a float32 scale: bitsandbytes' format without double quantization."""

    group_size: int = 64
    bits: int = 4

    def fit(self, W: torch.Tensor) -> torch.Tensor:
        """Take the largest magnitude of a block as its scale."""
        return largest(W, self).abs()

    def candidates(self, W: torch.Tensor) -> Iterator[torch.Tensor]:
        """Take half to 1.1 of the scales; a negative one mirrors the codebook, which is not symmetric."""
        top = largest(W, self)
        for share in SHARES:
            yield top.abs() * share
            yield top.abs() * -share

    def stored(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales are stored in float32."""
        return scale.float()

    def round(self, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes 0..15 of the nearest values, by the arithmetic of bitsandbytes so that ties fall as they do there."""
        unit = (w * (1.0 / torch.where(scale.abs() < 1e-38, 1e-38, scale))).clamp_(-1, 1)
        return torch.bucketize(unit, _nf4(w.device)[1], out_int32=True).to(torch.int8)

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Weights that the codes stand for."""
        return _nf4(codes.device)[0][codes.int()] * scale


def largest(W: torch.Tensor, grid: Quantizer) -> torch.Tensor:
    """The weight of the largest magnitude, with its sign, of every group of W [N, K]: float32 [N, K / group_size]."""
    groups = W.float().reshape(len(W), -1, grid.group_size)
    return groups.gather(-1, groups.abs().argmax(-1, keepdim=True))[..., 0]


def fit_weighted(W: torch.Tensor, importance: torch.Tensor, grid: Quantizer) -> torch.Tensor:
    """Of the grid's candidates, the scales of least Σ importance (w − ŵ)² in each group.

    importance [K]: how much an input is used, the diagonal of its damped Hessian: an input that was never used still
    counts a little. Returns [N, K / group_size].
    """
    rows = max(CACHED // W.shape[1], 1) if W.device.type == "cpu" else ROWS
    return torch.cat([_fit_rows(part, importance, grid) for part in W.split(rows)])


def _fit_rows(W: torch.Tensor, importance: torch.Tensor, grid: Quantizer) -> torch.Tensor:
    best, least = grid.fit(W), torch.full((len(W), W.shape[1] // grid.group_size), float("inf"), device=W.device)
    for scales in grid.candidates(W):
        scale = expand(scales, grid)
        errors = (W - grid.values(grid.round(W, scale), scale)).square_().mul_(importance)
        error = errors.unflatten(-1, (-1, grid.group_size)).sum(-1)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return best


def by_rows(
    function: Callable[[torch.Tensor, Quantizer], tuple[torch.Tensor, torch.Tensor]], W: torch.Tensor, grid: Quantizer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a function of W [N, K], some rows at a time to bound memory."""
    codes, scales = zip(*(function(rows, grid) for rows in W.split(ROWS)), strict=True)
    return torch.cat(codes), torch.cat(scales)


def round_to_nearest(W: torch.Tensor, grid: Quantizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [N, K] and scales [N, K / group_size] of W, every weight on its own.

    NF4 codes are those of bitsandbytes' own quantizer.
    """
    scales = grid.fit(W)
    if isinstance(grid, NF4Quantizer):
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(W.contiguous(), blocksize=grid.group_size, quant_type="nf4")
        return unpack_nibbles(packed).view(W.shape), state.absmax.view_as(scales)
    return grid.round(W.float(), expand(scales, grid)), scales


def expand(scales: torch.Tensor, grid: Quantizer) -> torch.Tensor:
    """Repeat scales [N, K / group_size] to [N, K], one a weight."""
    return scales.repeat_interleave(grid.group_size, dim=-1)


def dequantize(codes: torch.Tensor, scales: torch.Tensor, grid: Quantizer) -> torch.Tensor:
    """Weights [N, K] (float32) of codes [N, K] and scales [N, K / group_size]."""
    W = torch.empty(codes.shape, device=codes.device)
    for part, *solution in zip(W.split(ROWS), codes.split(ROWS), scales.split(ROWS), strict=True):
        part.copy_(grid.values(solution[0], expand(solution[1], grid)))
    return W


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes 0..15 two a byte, the first in the high half: bitsandbytes' order. Returns uint8 [numel / 2, 1]."""
    flat = codes.reshape(-1).to(torch.uint8)
    return ((flat[::2] << 4) | flat[1::2]).unsqueeze(1)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Undo `pack_nibbles`. Returns int8 [2 * numel]."""
    flat = packed.reshape(-1)
    return torch.stack([flat >> 4, flat & 15], dim=1).reshape(-1).to(torch.int8)
