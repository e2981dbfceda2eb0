"""Prints a summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.batch.output.summary import Summary


def print_summary(summary: Summary, console: Console) -> None:
    """Print counts, then fields and errors where there are any."""
    pages, documents = (
        f"{count} {noun}" + ("" if count == 1 else "s")
        for count, noun in ((summary.pages, "row"), (summary.documents, "document"))
    )
    table = Table(title=f"{pages} of {documents}", show_header=False)
    table.add_row("answered", str(summary.answered))
    table.add_row("with an error", str(summary.pages - summary.answered))
    table.add_row("truncated at --max-new-tokens", str(summary.truncated))
    table.add_row("retried", str(summary.retried))
    table.add_row("answer tokens", str(summary.tokens))
    for name, filled in summary.filled.items():
        table.add_row(f"field {name}", f"{filled} filled, {filled / max(1, summary.pages):.1%}")
    console.print(table)
    least = "≥ " if summary.errors_missed else ""
    for error in summary.errors:
        console.print(f"{least}{error.pages} x {error.message} ({error.example})", highlight=False, soft_wrap=True)
