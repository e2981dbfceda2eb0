"""Runs of `bench.gpu`: what is recorded of a stage that passes, fails or runs out of time, and the page of a run."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.gpu import page
from bench.gpu.__main__ import run_all
from bench.gpu.bench import Bench, OutOfTimeError
from bench.gpu.figures import Figure
from bench.gpu.record import Record, file_name, read_record
from bench.gpu.stage import STAGES, Stage
from bench.gpu.stages import kernels
from bench.gpu.table import stage_lines
from bench.timing import Quartiles

pytestmark = pytest.mark.slow

KERNELS = next(stage for stage in STAGES if stage.name == "kernels")


@pytest.fixture
def bench(tmp_path):
    return Bench("", "cpu", True, tmp_path, None, time.time() + 600, {})


def test_stages_run_in_processes_of_their_own(tmp_path):
    """As a user tries it."""
    options = ["--device", "cpu", "--tiny", "--only", "hardware", "--only", "kernels"]
    command = [sys.executable, "-m", "bench.gpu", *options, "--output", tmp_path / "run.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    record = read_record(tmp_path / "run.json")
    assert [stage["name"] for stage in record["stages"]] == ["hardware", "kernels"]
    assert all(stage["error"] is None and not stage["timed_out"] and stage["figures"] for stage in record["stages"])
    shares = [figure.share for stage in record["stages"] for figure in stage["figures"] if figure.share]
    assert shares
    assert all(0 < share < 2 for share in shares)
    assert "| copy bandwidth |" in done.stdout


def test_a_stage_that_fails_is_recorded_and_the_next_one_runs(bench, tmp_path):
    record = Record(tmp_path / "run.json", "a command", "cpu", True)
    run_all([Stage("nothing", "There is no such stage", 1), KERNELS], bench, 60, record)
    failed, passed = read_record(tmp_path / "run.json")["stages"]
    assert failed["error"] == "ModuleNotFoundError: No module named 'bench.gpu.stages.nothing'"
    assert failed["figures"] == []
    assert passed["error"] is None
    assert "gate, up" in passed["figures"][0].name


def test_what_the_clock_cuts_off_is_marked(bench, tmp_path):
    record = Record(tmp_path / "run.json", "a command", "cpu", True)
    run_all([replace(KERNELS, weight=0.01), Stage("nothing", "There is no such stage", 1)], bench, 1.5, record)
    cut = read_record(tmp_path / "run.json")["stages"][0]
    assert (cut["timed_out"], cut["error"]) == (True, None)


def test_what_was_measured_before_the_end_is_kept(bench):
    ends = time.time() + 0.5
    stage = kernels.measure(replace(bench, ends=ends))
    figures = [next(stage)]
    time.sleep(max(0.0, ends - time.time()) + 0.01)
    with pytest.raises(OutOfTimeError):
        while True:
            figures.append(next(stage))
    assert 0 < len(figures) < len(kernels.CPU_KINDS) * len(kernels.TINY) * len(kernels.TINY_ROWS)


def test_a_stage_that_never_looks_at_the_clock_is_killed_with_its_children(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.gpu.__main__.GRACE", 3.0)  # by then it has started some
    monkeypatch.setenv("MARK", str(tmp_path))
    record = Record(tmp_path / "run.json", "a command", "cpu", True)
    run_all([next(stage for stage in STAGES if stage.name == "correctness")], bench, 5, record)
    (stage,) = read_record(tmp_path / "run.json")["stages"]
    assert (stage["timed_out"], stage["error"]) == (True, None)
    time.sleep(0.2)
    assert not [path for path in Path("/proc").glob("[0-9]*/environ") if str(tmp_path).encode() in _read(path)]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return b""


def test_figures_of_timings():
    timing = Quartiles(2e-3, 1e-3, 4e-3, 9)
    assert Figure.of("x", timing) == Figure("x", 2.0, "ms", 1.0, 4.0, 9)
    assert Figure.rate("x", timing, 8.0, "GB/s") == Figure("x", 4000.0, "GB/s", 2000.0, 8000.0, 9)


def test_a_table_shows_what_there_is():
    figures = [Figure("GPU", "an H100"), Figure("step", 12.3456, "ms", 12.0, 13.0, 20, 0.61, "of the bandwidth")]
    figures += [Figure("many", 123456.7, "tokens/s"), Figure("error", 3.2e-7)]
    lines = list(stage_lines("A stage", 12.4, "it broke", True, figures))
    assert lines[0] == "## A stage"
    assert lines[2] == "12 s. Its time ran out. It failed: it broke"
    assert lines[-5] == "| GPU | an H100 | | | |  |"
    assert lines[-4] == "| step | 12.3 ms | 12–13 | 20 | 61% | of the bandwidth |"
    assert lines[-3] == "| many | 123,457 tokens/s |  | 1 |  |  |"
    assert lines[-2] == "| error | 3.2e-07 |  | 1 |  |  |"


def test_the_page_is_of_the_newest_run_on_a_gpu(tmp_path):
    for name, value in (("gpu-h200-2026-11-02", 2.0), ("gpu-h100-2026-12-01", 3.0), ("gpu-cpu-2026-12-31", 4.0)):
        record = Record(tmp_path / f"{name}.json", "a command", "cuda", False)
        record.save()
        content = json.loads((tmp_path / f"{name}.json").read_text())
        figure = {"name": "step", "value": value, "unit": "ms"}
        stage = {
            "name": "decode",
            "title": "33 B",
            "seconds": 1,
            "error": None,
            "timed_out": False,
            "figures": [figure],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content | {"stages": [stage | {"figures": [figure]}]}))
    written = page.page(tmp_path)
    assert written.startswith("# On a GPU\n\n`bench/results/gpu-h100-2026-12-01.json`: `a command`, ")
    assert "| step | 3 ms |" in written
    assert "| step | 4 ms |" not in written


def test_the_page_in_the_repository_is_of_the_runs_in_the_repository():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.RESULTS)


def test_without_a_run_the_page_says_so(tmp_path):
    assert page.page(tmp_path).splitlines()[2].startswith("**No run on a GPU has been recorded yet.**")


def test_a_file_is_named_by_its_gpu():
    assert file_name("cpu").startswith("gpu-cpu-20")
