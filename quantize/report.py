"""The report of a run: the error of every linear, kept in the folder and summarised on the screen."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class LinearReport:
    """One quantized linear."""

    name: str
    """Its path in the model."""
    tower: str
    """vision, decoder, mtp or head."""
    shape: tuple[int, ...]
    """Outputs and inputs."""
    bits: int
    """Bits of a code."""
    group_size: int
    """Weights that share a scale."""
    solver: Literal["gptq", "rtn"]
    """rtn where the user chose it, or where the Hessian could not be factorised."""
    error: float | None
    """‖(W − Ŵ)X‖² / ‖WX‖² over the calibration tokens (weighted by `quantize.solver.token_weights`). W is the weight
    to come close to, which in a decoder of 4 bits makes up for errors of its inputs (`quantize.solver.input_errors`).
    None where the Hessian is not positive semidefinite, as sums in float32 can be: the error is unknown then."""
    error_rtn: float | None
    """The same error with RTN of the same weight."""
    damping: float | None
    """Added to the diagonal of the Hessian, relative to its mean. None where no Hessian was used."""


@dataclass(frozen=True)
class StepReport:
    """One step of a run."""

    name: str
    """The path of a block, or what lies between two blocks."""
    seconds: float
    """How long it took."""
    peak_mib: int | None
    """`peak_mib()` after the step."""


def peak_mib() -> int | None:
    """Return the peak memory of this process in MiB; None on Windows."""
    if sys.platform == "win32":  # it has no module `resource`
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


@dataclass
class Report:
    """One run and its result."""

    settings: dict[str, Any]
    """What decides the result, as `Settings.record` lists it."""
    linears: list[LinearReport] = field(default_factory=list)
    """Every quantized linear."""
    steps: list[StepReport] = field(default_factory=list)
    """Every step."""
    documents: int = 0
    """Number of calibration documents."""
    tokens: int = 0
    """Number of calibration tokens."""
    bytes: int = 0
    """Bytes of all tensors in the result."""
    digests: dict[str, str] = field(default_factory=dict)
    """A digest of the documents of each split."""

    @property
    def seconds(self) -> float:
        """How long all steps took, those before a resume included."""
        return sum(step.seconds for step in self.steps)

    def times(self) -> dict[str, Any]:
        """Make quantization_times.json: times and memory, which differ from run to run."""
        return {"seconds": round(self.seconds, 2), "steps": [asdict(step) for step in self.steps]}

    def as_dict(self) -> dict[str, Any]:
        """Make quantization_report.json: the result, without what differs from run to run."""
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
        """Make a table with a row per kind of linear: mean and worst error, and the mean error of RTN."""
        from rich.table import Table

        table = Table(title="Output error of the quantized linears, ‖(W − Ŵ)X‖² / ‖WX‖²")
        for column in ("tower", "linear"):
            table.add_column(column, no_wrap=True)
        for column in ("bits", "mean", "worst", "RTN", "ratio"):
            table.add_column(column, justify="right", no_wrap=True)
        for (tower, linear), members in self._kinds().items():
            errors = [member.error for member in members if member.error is not None]
            errors_rtn = [member.error_rtn for member in members if member.error_rtn is not None]
            numbers = ["–"] * 4
            if errors and errors_rtn:
                error, error_rtn = sum(errors) / len(errors), sum(errors_rtn) / len(errors_rtn)
                ratio = f"{error / error_rtn:.2f}" if error_rtn else "–"
                numbers = [f"{error:.2e}", f"{max(errors):.2e}", f"{error_rtn:.2e}", ratio]
            table.add_row(tower, linear, f"{members[0].bits} g{members[0].group_size}", *numbers)
        return table

    def _kinds(self) -> dict[tuple[str, str], list[LinearReport]]:
        """Group linears that differ only in the number of their block."""
        kinds: dict[tuple[str, str], list[LinearReport]] = {}
        for linear in self.linears:
            kinds.setdefault((linear.tower, ".".join(linear.name.split(".")[-2:])), []).append(linear)
        return kinds
