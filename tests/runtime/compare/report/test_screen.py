"""A comparison on the screen."""

import io

import pytest
from rich.console import Console

from runtime.compare.report.screen import print_comparison

from ..pages import comparison, measured

DOCUMENTS = [measured("0", "total 0", "total 0", "total 0", "total 5")]


@pytest.mark.parametrize(
    ("models", "rows"),
    [
        (["out/w4", "out/nf4"], ["fp16", "w4", "nf4"]),
        (["a/w4", "b/w4"], ["out/fp16", "a/w4", "b/w4"]),
        (["w4", "."], ["out/fp16", "w4", "."]),
    ],
)
def test_every_model_has_a_name_of_its_own(models, rows):
    """The folder's where that tells them apart, with the numbers that are its own."""
    shown = io.StringIO()
    print_comparison(comparison(DOCUMENTS, *models, baseline="out/fp16"), Console(file=shown, width=120))
    table = [line.split() for line in shown.getvalue().partition("\n\n")[0].splitlines()[-len(rows) :]]
    assert [line[0] for line in table] == rows
    assert [line[3] for line in table] == ["1.000", "1.000", "0.857"]  # ANLS
