"""Draw accuracy against minutes of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

# Key of a row in curve.json -> its label. All are shares between 0 and 1, averaged over 50 steps.
LINES = {
    "character accuracy": "characters named in image tokens",
    "token accuracy": "answer tokens, teacher-forced",
    "draft accuracy": "drafted tokens (MTP)",
}


def draw(curve: Sequence[dict[str, float]]) -> Figure:
    """Draw the rows of curve.json; a row without a key is left out of that key's line."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for key, label in LINES.items():
        rows = [row for row in curve if key in row]
        axes.plot([row["minutes"] for row in rows], [row[key] for row in rows], label=label)
    axes.set(xlabel="minutes on two CPU cores", ylim=(0, 1))
    axes.grid(axis="y", color="#dddddd")
    axes.legend(loc="lower right")
    return figure
