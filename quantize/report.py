"""What quantizing did to every linear: kept in the folder, and summed up on the screen."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class LinearReport:
    """One linear; tower is vision, decoder or head.

    solver: "rtn" where it was asked for, or where the Hessian could not be factorised. error, error_rtn:
    ‖(W − Ŵ)X‖² / ‖WX‖² over the calibration tokens (as `quantize.solver.token_weights` weighs them), as solved and for
    round-to-nearest; None where the Hessian is not positive semidefinite, as sums in float32 can be: no such error
    means anything then. damping: the share of the Hessian's mean diagonal that was added; None where no Hessian was
    used.
    """

    name: str
    tower: str
    shape: tuple[int, ...]
    bits: int
    group_size: int
    solver: Literal["gptq", "rtn"]
    error: float | None
    error_rtn: float | None
    damping: float | None


@dataclass(frozen=True)
class StepReport:
    """One step of a run: a block, or what lies between. peak_mib: as `peak_mib` gave it then."""

    name: str
    seconds: float
    peak_mib: int | None


def peak_mib() -> int | None:
    """The most memory that this process has held, in MiB; None on Windows."""
    if sys.platform == "win32":  # has no module for it
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


@dataclass
class Report:
    """One run: its settings, what came out, and the digests of its documents, by split."""

    settings: dict[str, Any]
    linears: list[LinearReport] = field(default_factory=list)
    steps: list[StepReport] = field(default_factory=list)
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long all steps took, those of a run that was killed included."""
        return sum(step.seconds for step in self.steps)

    def times(self) -> dict[str, Any]:
        """How long it took and how much memory, for quantization_times.json: all that differs from run to run."""
        return {"seconds": round(self.seconds, 2), "steps": [asdict(step) for step in self.steps]}

    def as_dict(self) -> dict[str, Any]:
        """What the result is, for quantization_report.json."""
        totals = {
            "documents": self.documents,
            "tokens": self.tokens,
            "linears": len(self.linears),
            "bytes": self.bytes,
        }
        packages = ("torch", "transformers", "compressed-tensors", "bitsandbytes", "safetensors")
        return {
            "settings": self.settings,
            "documents": self.digests,
            "versions": {name: version(name) for name in packages},
            "totals": totals,
            "linears": [asdict(linear) for linear in self.linears],
        }

    def table(self) -> Table:
        """Linears of one kind in a row: mean and worst error, and the mean of round-to-nearest."""
        from rich.table import Table

        table = Table(title="Output error of the quantized linears, ‖(W − Ŵ)X‖² / ‖WX‖²")
        for column in ("tower", "linear"):
            table.add_column(column, no_wrap=True)
        for column in ("bits", "mean", "worst", "nearest", "ratio"):
            table.add_column(column, justify="right", no_wrap=True)
        for (tower, linear), members in self._kinds().items():
            errors = [member.error for member in members if member.error is not None]
            rounded = [member.error_rtn for member in members if member.error_rtn is not None]
            numbers = ["–"] * 4
            if errors and rounded:
                error, nearest = sum(errors) / len(errors), sum(rounded) / len(rounded)
                ratio = f"{error / nearest:.2f}" if nearest else "–"
                numbers = [f"{error:.2e}", f"{max(errors):.2e}", f"{nearest:.2e}", ratio]
            table.add_row(tower, linear, f"{members[0].bits} g{members[0].group_size}", *numbers)
        return table

    def _kinds(self) -> dict[tuple[str, str], list[LinearReport]]:
        """Linears of one kind: those that differ only in the number of their block."""
        kinds: dict[tuple[str, str], list[LinearReport]] = {}
        for linear in self.linears:
            kinds.setdefault((linear.tower, ".".join(linear.name.split(".")[-2:])), []).append(linear)
        return kinds
