"""What is said of a run: its memory on each system, and errors that are not known."""

import resource
import sys

import pytest

from quantize.report import LinearReport, Report, peak_mib


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_peak_memory_in_the_unit_of_the_system(monkeypatch, platform, unit):
    monkeypatch.setattr(sys, "platform", platform)
    expected = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    assert peak_mib() == pytest.approx(expected, abs=2)


def test_peak_memory_where_there_is_no_module_for_it(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_mib() is None


def test_errors_that_are_not_known_are_left_out_of_the_table():
    errors = {"a.q": (0.1, 0.4), "b.q": (None, None), "c.q": (0.3, 0.6), "a.k": (None, None)}
    linears = [
        LinearReport(f"layers.{name}", "decoder", (4, 4), 4, 4, "gptq", *error, 0.01) for name, error in errors.items()
    ]
    table = Report({}, linears).table()
    cells = [list(column.cells) for column in table.columns]
    rows = dict(zip(cells[1], zip(*cells[3:], strict=True), strict=True))
    assert rows["a.q"] == ("1.00e-01", "1.00e-01", "4.00e-01", "0.25")
    assert rows["a.k"] == ("–", "–", "–", "–")
