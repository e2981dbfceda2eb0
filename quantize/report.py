"""What quantizing did to every linear: kept in the folder, and summed up on the screen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class LinearReport:
    """One linear; tower is vision, decoder or head.

    error, error_rtn: ‖(W − Ŵ)X‖² / ‖WX‖² over the calibration tokens (as `quantize.importance` weighs them), as
    solved and for round-to-nearest. damping: the share of the Hessian's mean diagonal that was added; None where no
    Hessian was used.
    """

    name: str
    tower: str
    shape: tuple[int, ...]
    bits: int
    group_size: int
    error: float
    error_rtn: float
    damping: float | None


@dataclass(frozen=True)
class StepReport:
    """One step of a run: a block, or what lies between. peak_mib: the most memory that the process had held by then."""

    name: str
    seconds: float
    peak_mib: int


@dataclass
class Report:
    """One run: its settings, and what came out."""

    settings: dict[str, Any]
    linears: list[LinearReport] = field(default_factory=list)
    steps: list[StepReport] = field(default_factory=list)
    documents: int = 0
    tokens: int = 0
    bytes: int = 0

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
            error = sum(member.error for member in members) / len(members)
            nearest = sum(member.error_rtn for member in members) / len(members)
            table.add_row(
                tower,
                linear,
                f"{members[0].bits} g{members[0].group_size}",
                f"{error:.2e}",
                f"{max(member.error for member in members):.2e}",
                f"{nearest:.2e}",
                f"{error / nearest:.2f}" if nearest else "–",
            )
        return table

    def _kinds(self) -> dict[tuple[str, str], list[LinearReport]]:
        """Linears of one kind: those that differ only in the number of their block."""
        kinds: dict[tuple[str, str], list[LinearReport]] = {}
        for linear in self.linears:
            kinds.setdefault((linear.tower, ".".join(linear.name.split(".")[-2:])), []).append(linear)
        return kinds
