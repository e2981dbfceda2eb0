"""What a script on the stand-in device can see of bytes between host and device.

Imported by the scripts that `CudaStub.run` starts, under the name `traffic`.
"""

from __future__ import annotations

import ctypes

COUNTERS = ("bytes_to_device", "bytes_to_host", "copies_to_device", "copies_to_host", "launches")


class Traffic:
    """Counts what happens inside a `with` block; its counters are those of COUNTERS."""

    def __enter__(self) -> Traffic:
        self._before = _counters()
        return self

    def __exit__(self, *_: object) -> None:
        self.counts = {name: after - self._before[name] for name, after in _counters().items()}


def _counters() -> dict[str, int]:
    library = ctypes.CDLL("libcudart.so.13")
    return {name: ctypes.c_ulong.in_dll(library, f"stub_{name}").value for name in COUNTERS}
