"""The result of `verify`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """The comparison of one graph with its reference."""

    graph: str
    """File name."""
    float32: bool
    """The graph's packed products were given float32 activations, which the exported graph rounds to int8."""
    error: float
    """Largest difference, relative to the largest value of the reference."""
    tolerance: float
    """Largest error that passes."""
    operators: dict[str, int]
    """Number of nodes in the file, by operator."""
    nodes: dict[str, int]
    """Number of nodes that ran after ONNX Runtime's own optimisations, by execution provider."""

    @property
    def name(self) -> str:
        """The graph, and how it was run if not as exported."""
        return f"{self.graph}, float32" if self.float32 else self.graph

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; False for NaN."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Verification:
    """All checks of one folder on one device."""

    device: str
    """As the caller gave it."""
    about: str
    """Kind of graphs, hardware and versions, for people."""
    damaged: list[str]
    """Weights files whose bytes are not those that were exported."""
    checks: list[Check]
    """One for each graph, then those with float32 activations."""
    tokens_per_second: float
    """Decoding speed, one sequence."""
    memory: float | None
    """MiB in use after decoding.

    On a GPU: used by all processes. On the CPU: the peak of this process; None where the system does not report it.
    """

    @property
    def passed(self) -> bool:
        """Whether all weights files are intact and all checks pass."""
        return not self.damaged and all(check.passed for check in self.checks)
