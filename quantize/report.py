"""What quantizing did to every linear: kept in the folder, and summed up on the screen."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class LinearReport:
    """One linear; part is the tower it is in.

    error, error_rtn: ‖(W − Ŵ)X‖² / ‖WX‖² over the calibration tokens, as solved and for round-to-nearest. damping: the
    share of the Hessian's mean diagonal that was added; None where no Hessian was used.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    bits: int
    group_size: int
    error: float
    error_rtn: float
    damping: float | None
    seconds: float


@dataclass
class Report:
    """One run: its settings, and what came out."""

    settings: dict[str, Any]
    linears: list[LinearReport] = field(default_factory=list)
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything, for quantization_report.json."""
        totals = {
            "documents": self.documents,
            "tokens": self.tokens,
            "linears": len(self.linears),
            "bytes": self.bytes,
            "seconds": round(self.seconds, 2),
        }
        packages = ("torch", "transformers", "compressed-tensors", "bitsandbytes", "safetensors")
        return {
            "settings": self.settings,
            "versions": {name: version(name) for name in packages},
            "totals": totals,
            "linears": [asdict(linear) for linear in self.linears],
        }

    def table(self) -> Table:
        """Linears of one kind in a row: mean and worst error, and how much of round-to-nearest's is left."""
        from rich.table import Table

        table = Table(title="Output error of the quantized linears, ‖(W − Ŵ)X‖² / ‖WX‖²")
        for column, justify in (("linear", "left"), ("n", "right"), ("bits", "right"), ("group", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for column in ("mean", "worst", "nearest", "ratio"):
            table.add_column(column, justify="right")
        for kind, members in self._kinds().items():
            error = sum(linear.error for linear in members) / len(members)
            nearest = sum(linear.error_rtn for linear in members) / len(members)
            table.add_row(
                kind,
                str(len(members)),
                str(members[0].bits),
                str(members[0].group_size),
                f"{error:.2e}",
                f"{max(linear.error for linear in members):.2e}",
                f"{nearest:.2e}",
                f"{error / nearest:.2f}" if nearest else "–",
            )
        return table

    def _kinds(self) -> dict[str, list[LinearReport]]:
        """Linears that differ only in the number of their block."""
        kinds: dict[str, list[LinearReport]] = {}
        for linear in self.linears:
            kind = f"{linear.part} {'.'.join(linear.name.split('.')[-2:])}"
            kinds.setdefault(kind, []).append(linear)
        return kinds


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """Show steps with their rate and the time left; a plain line a step where the output is not a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    started = time.perf_counter()
    if not console.is_terminal:
        yield lambda done, total, what: console.print(
            f"[{done + 1}/{total}] {time.perf_counter() - started:.0f} s  {what}", markup=False, highlight=False
        )
        return
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, rate="")

        def show(done: int, total: int, what: str) -> None:
            seconds = (time.perf_counter() - started) / max(done, 1)
            bar.update(task, completed=done, total=total, description=what, rate=f"{seconds:.1f} s/step")

        yield show
