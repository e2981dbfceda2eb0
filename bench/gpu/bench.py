"""What a stage is told: where it runs, how large, and how long it may take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runtime.ort.sessions import Device

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch


class OutOfTimeError(Exception):
    """A stage has to end, whatever it has not measured yet."""


@dataclass(frozen=True)
class Bench:
    """The setting of one stage, which runs in a process of its own."""

    stage: str
    """Its name."""
    device: Literal["cpu", "cuda"]
    """`cuda`, or `cpu` to try the stages themselves."""
    tiny: bool
    """Models and inputs in miniature."""
    scratch: Path
    """A folder for what several stages use, in memory where there is capacity."""
    graphs: Path | None
    """The folder that `python -m bench.gpu.prepare` made; None to trace graphs here, in minutes at 33 B."""
    ends: float
    """When the stage has to end, by `time.time`."""
    ceilings: dict[str, float]
    """Bytes a second of a copy, and operations a second of a product, where the stage `card` has measured them."""

    @property
    def place(self) -> Device:
        """The device as the runtime names it."""
        return Device.parse(self.device)

    @property
    def on_gpu(self) -> bool:
        """Whether there is one."""
        return self.device == "cuda"

    @property
    def torch_device(self) -> torch.device:
        """The device as torch names it."""
        import torch

        return torch.device(self.device)

    def synchronize(self) -> None:
        """Wait for what torch has started on the GPU."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()

    def within(self, items: list[Any], seconds: float = 0.0) -> Iterator[Any]:
        """Yield items while there is time for one more, of about so many seconds; then raise OutOfTimeError."""
        for item in items:
            if time.time() + seconds > self.ends:
                raise OutOfTimeError
            yield item

    def share_of(self, ceiling: str, rate: float) -> float | None:
        """A rate as a share of a measured ceiling; None where that is not known."""
        return rate / self.ceilings[ceiling] if ceiling in self.ceilings else None
