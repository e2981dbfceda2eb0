"""The setting of a stage: device, size and time limit."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runtime.ort.device import Device

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch


BANDWIDTH, PRODUCT = "copy bandwidth", "fp16 matrix product"
"""Names of the ceilings, which the stage `hardware` measures."""


class OutOfTimeError(Exception):
    """The time of a stage is up."""


@dataclass(frozen=True)
class Bench:
    """The setting of one stage, which runs in a process of its own."""

    stage: str
    """Name of the stage."""
    device: Literal["cpu", "cuda"]
    """`cuda`, or `cpu` to try the stages themselves."""
    tiny: bool
    """Models and inputs in miniature."""
    scratch: Path
    """Folder that the stages share, in memory if that has the capacity."""
    graphs: Path | None
    """Folder of `python -m bench.gpu.prepare`; None to trace graphs here, which takes minutes at 33 B."""
    ends: float
    """Deadline of the stage, by `time.time`."""
    ceilings: dict[str, float]
    """Bytes a second of a copy and operations a second of a matrix product, if the stage `hardware` measured them."""

    @property
    def runtime_device(self) -> Device:
        """The device as the runtime names it."""
        return Device.parse(self.device)

    @property
    def on_gpu(self) -> bool:
        """Whether the stages run on a GPU."""
        return self.device == "cuda"

    @property
    def torch_device(self) -> torch.device:
        """The device as torch names it."""
        import torch

        return torch.device(self.device)

    def synchronize(self) -> None:
        """Wait until the GPU has finished torch's work."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()

    def within(self, items: list[Any], seconds: float = 0.0) -> Iterator[Any]:
        """Yield items while there is time for one more of about `seconds`; then raise OutOfTimeError."""
        for item in items:
            if time.time() + seconds > self.ends:
                raise OutOfTimeError
            yield item

    def share_of(self, ceiling: str, rate: float) -> float | None:
        """A rate divided by a measured ceiling; None if that is unknown."""
        return rate / self.ceilings[ceiling] if ceiling in self.ceilings else None
