"""`bench.gpu` in miniature on the CPU: every stage, what is kept of a stage that fails or is cut off, and its parts."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from bench.gpu import page, products
from bench.gpu.__main__ import run_all
from bench.gpu.bench import Bench, OutOfTimeError
from bench.gpu.figures import Figure, Timing, timed
from bench.gpu.folders import TINY, VARIANTS, pack, unpack
from bench.gpu.memory import PeakMemory
from bench.gpu.record import Record, file_name, read_record
from bench.gpu.stage import STAGES, Stage
from bench.gpu.table import stage_lines
from bench.released_widths import STD
from quantize.checkpoint.reader import open_checkpoint
from quantize.solver.quantizers import NF4_VALUES
from runtime.decoding.forward import prefill
from runtime.model import Model
from runtime.prompt import build_prompt
from runtime.weights import Weights

LINEAR = "model.language_model.layers.0.mlp.down_proj"
CARD = next(stage for stage in STAGES if stage.name == "card")


@pytest.fixture
def bench(tmp_path):
    return Bench("", "cpu", True, tmp_path, None, time.time() + 600, {})


def test_every_stage_passes_in_miniature(tmp_path):
    """As a user tries it. The slowest test of the suite, and the only one of some stages."""
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--tiny", "--output", tmp_path / "run.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    record = read_record(tmp_path / "run.json")
    assert [stage["name"] for stage in record["stages"]] == [stage.name for stage in STAGES]
    assert all(stage["error"] is None and not stage["cut"] and stage["figures"] for stage in record["stages"])
    figures = {figure.name: figure for stage in record["stages"] for figure in stage["figures"]}
    assert figures["copy bandwidth"].value > 0
    assert figures["4 bits: greedy answers changed"].count == 1
    assert "passes" in figures["4 bits: verify decoder.cpu.onnx"].note
    for name in ("a cache that held NaN", "windows filled 3 times", "batch of 4"):
        assert figures[f"{name}: largest difference of logits"].value < 0.1  # with int8 activations
    for variant in VARIANTS:
        assert figures[f"{variant}: step at 70 tokens"].value > 0
    assert figures["drafts: checking 3"].unit == "steps"
    assert figures["stored: largest"].value > figures["stored: A4 page"].value
    assert figures["64 decoder layers"].note == "multiplied, not measured"
    assert figures["ours against transformers, bf16 with torch.compile: step"].value > 0
    shares = [figure.share for stage in record["stages"] for figure in stage["figures"] if figure.share]
    assert all(0 < share < 2 for share in shares)
    assert "| copy bandwidth |" in done.stdout


def test_a_stage_that_fails_is_recorded_and_the_next_one_runs(bench, tmp_path):
    record = Record(tmp_path / "run.json", "a command", "cpu", True)
    run_all([Stage("nothing", "There is no such stage", 1), CARD], bench, 60, record)
    failed, card = read_record(tmp_path / "run.json")["stages"]
    assert failed["error"] == "ModuleNotFoundError: No module named 'bench.gpu.nothing'"
    assert failed["figures"] == []
    assert card["error"] is None
    assert "copy bandwidth" in [figure.name for figure in card["figures"]]


def test_what_the_clock_cuts_off_is_marked(bench, tmp_path):
    record = Record(tmp_path / "run.json", "a command", "cpu", True)
    run_all([next(stage for stage in STAGES if stage.name == "products"), CARD], bench, 1.5, record)
    cut = read_record(tmp_path / "run.json")["stages"][0]
    assert (cut["cut"], cut["error"]) == (True, None)


def test_what_was_measured_before_the_end_is_kept(bench):
    found = []
    stage = products.measure(replace(bench, ends=time.time() + 0.5))
    with pytest.raises(OutOfTimeError):
        while True:
            found.append(next(stage))
    assert 0 < len(found) < len(products.CPU_KINDS) * len(products.TINY) * len(products.TINY_ROWS)


def test_a_stage_that_never_looks_at_the_clock_is_killed_with_its_children(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.gpu.__main__.GRACE", 3.0)  # by then it has started some
    monkeypatch.setenv("MARK", str(tmp_path))
    record = Record(tmp_path / "run.json", "a command", "cpu", True)
    run_all([next(stage for stage in STAGES if stage.name == "right")], bench, 5, record)
    (stage,) = read_record(tmp_path / "run.json")["stages"]
    assert (stage["cut"], stage["error"]) == (True, None)
    time.sleep(0.2)
    assert not [path for path in Path("/proc").glob("[0-9]*/environ") if str(tmp_path).encode() in _read(path)]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return b""


def test_a_call_is_timed_after_a_warm_up():
    calls = []
    timing = timed(lambda: (calls.append(None), time.sleep(0.02 if len(calls) <= 2 else 0.001)), seconds=0, least=7)
    assert timing.count == 7
    assert len(calls) == 9
    assert timing.low <= timing.median <= timing.high < 0.02


def test_figures_of_timings():
    timing = Timing(2e-3, 1e-3, 4e-3, 9)
    assert Figure.of("x", timing) == Figure("x", 2.0, "ms", 1.0, 4.0, 9)
    assert Figure.rate("x", timing, 8.0, "GB/s") == Figure("x", 4000.0, "GB/s", 2000.0, 8000.0, 9)


def test_a_table_shows_what_there_is():
    figures = [Figure("card", "an H100"), Figure("step", 12.3456, "ms", 12.0, 13.0, 20, 0.61, "of the bandwidth")]
    figures += [Figure("many", 123456.7, "tokens/s"), Figure("error", 3.2e-7)]
    lines = list(stage_lines("A stage", 12.4, "it broke", True, figures))
    assert lines[0] == "## A stage"
    assert lines[2] == "12 s. Cut off by the clock. It failed: it broke"
    assert lines[-5] == "| card | an H100 | | | |  |"
    assert lines[-4] == "| step | 12.3 ms | 12–13 | 20 | 61% | of the bandwidth |"
    assert lines[-3] == "| many | 123,457 tokens/s |  | 1 |  |  |"
    assert lines[-2] == "| error | 3.2e-07 |  | 1 |  |  |"


def test_folders_made_of_graphs_and_headers_answer(tmp_path):
    """Packed here, unpacked elsewhere. Weights are linked, not copied, and have the deviation of trained ones."""
    pack(replace(TINY, variants=("stored", "int8-kv")), "cpu", tmp_path / "graphs.tar.gz")
    assert (tmp_path / "graphs.tar.gz").stat().st_size < 1 << 20
    (tmp_path / "made").mkdir()
    unpack(tmp_path / "graphs.tar.gz", tmp_path / "made")
    plain, quantized = (tmp_path / "made" / variant for variant in ("stored", "int8-kv"))
    assert {path.name for path in plain.glob("*.onnx")} >= {"decoder.cpu.onnx", "mtp.cpu.onnx", "vision.cpu.onnx"}
    (weights,) = (path.name for path in plain.glob("*.safetensors"))
    assert (plain / weights).samefile(quantized / weights)
    linear = Weights(plain, [weights]).load(LINEAR)
    assert linear.std() == pytest.approx(STD, rel=0.05)
    assert abs(linear.mean()) < STD / 10
    assert torch.equal(open_checkpoint(plain).load(f"{LINEAR}.weight_shape"), torch.tensor(linear.shape))
    logits = []
    for folder in (plain, quantized):
        model = Model(folder, "cpu")
        prompt = build_prompt(model, "Hello")
        with model.decoder.borrow_cache(len(prompt.ids)) as cache:
            logits.append(prefill(model, cache, prompt))
    assert np.isfinite(logits).all()
    assert np.std(logits, axis=1).min() > 0.01
    assert not np.array_equal(*logits)


ON_CUDA = """
import json, subprocess, sys
options = "--device", "cuda", "--tiny", "--only", "products", "--output", sys.argv[1]
command = [sys.executable, "-m", "bench.gpu", *options]
done = subprocess.run(command, capture_output=True, text=True, cwd=sys.argv[2])
print(json.dumps([done.returncode, done.stdout[-3000:]]))
"""


def test_products_run_on_a_gpu_in_its_types(cuda_stub, tmp_path):
    """On the stand-in, whose times mean nothing: blocks of 32 through the kernels that repack them, bfloat16, NF4."""
    root = page.ROOT
    code, said = cuda_stub.run(ON_CUDA, tmp_path / "run.json", root)
    assert code == 0, said
    (stage,) = read_record(tmp_path / "run.json")["stages"]
    kinds = {figure.name.split(";")[0] for figure in stage["figures"]}
    assert kinds == {kind.name for kind in products.KINDS}


MEMORY = """
import json, time
from pathlib import Path
from bench.gpu.bench import Bench, OutOfTimeError
from bench.gpu.memory import PeakMemory
from runtime.ort.sessions import Buffer, Device

Buffer.empty((1,), "int8", Device("cuda"))
with PeakMemory(Bench("", "cuda", True, Path(), None, 0.0, {})) as memory:
    held = Buffer.empty((64 << 20,), "int8", Device("cuda"))
    time.sleep(0.05)
print(json.dumps(memory.bytes))
"""


def test_peak_memory_is_the_gpus(cuda_stub):
    assert cuda_stub.run(MEMORY) == pytest.approx(64 << 20, rel=0.05)


@pytest.mark.parametrize("kind", products.CPU_KINDS, ids=lambda kind: kind.name)
def test_products_are_those_of_the_weights(kind, tmp_path):
    """What is timed is what a decoder does: codes from the lowest bits on, and a scale for each block."""
    outputs, inputs, copies = 64, 256, 2
    products.save_products(tmp_path / "p.onnx", kind, 4, outputs, inputs, copies)
    session = onnxruntime.InferenceSession(tmp_path / "p.onnx", providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(3, inputs)).astype(np.float32)
    found = session.run(None, {"x": x})
    raw = np.fromfile(tmp_path / "p.bin", np.uint8)
    packed, scales = raw[: outputs * inputs // 2], raw[outputs * inputs // 2 :].view(np.float32)
    if kind.nf4:
        codes = np.array(NF4_VALUES, np.float32)[np.stack((packed >> 4, packed & 15), -1)]
    else:
        codes = np.stack((packed & 15, packed >> 4), -1).astype(np.float32) - 8
    weight = (codes.reshape(-1, kind.block) * scales[:, None]).reshape(outputs, inputs)
    assert len(found) == copies
    for one in found:
        np.testing.assert_allclose(one, x @ weight.T, rtol=1e-3, atol=1e-5)
    assert kind.nbytes("gate, up", outputs, inputs) == raw.nbytes


def test_peak_memory_is_seen(bench):
    with PeakMemory(bench) as memory:
        held = np.ones(64 << 20, np.uint8)
        time.sleep(0.05)
        del held
    assert 60 << 20 < memory.bytes < 100 << 20


def test_the_page_is_of_the_newest_run_on_a_gpu(tmp_path):
    for name, value in (("gpu-h200-2026-11-02", 2.0), ("gpu-h100-2026-12-01", 3.0), ("gpu-cpu-2026-12-31", 4.0)):
        record = Record(tmp_path / f"{name}.json", "a command", "cuda", False)
        record.save()
        content = json.loads((tmp_path / f"{name}.json").read_text())
        figure = {"name": "step", "value": value, "unit": "ms"}
        stage = {"name": "whole", "about": "33 B", "seconds": 1, "error": None, "cut": False, "figures": [figure]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content | {"stages": [stage]}))
    written = page.page(tmp_path)
    assert written.startswith("# On a GPU\n\n`bench/results/gpu-h100-2026-12-01.json`: `a command`, ")
    assert "| step | 3 ms |" in written
    assert "| step | 4 ms |" not in written


def test_the_page_in_the_repository_is_of_the_runs_in_the_repository():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.RESULTS)


def test_without_a_run_the_page_says_so(tmp_path):
    assert page.page(tmp_path).splitlines()[2].startswith("**No run on a GPU has been recorded yet.**")


def test_a_file_is_named_by_its_card():
    assert file_name("cpu").startswith("gpu-cpu-20")
