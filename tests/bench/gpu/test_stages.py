"""Every stage of `bench.gpu` in miniature on the CPU, and its parts."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch

from bench.gpu.__main__ import ceilings
from bench.gpu.bench import Bench
from bench.gpu.folders import VARIANTS
from bench.gpu.memory import PeakMemory
from bench.gpu.page import ROOT
from bench.gpu.record import Outcome, Record, read_record
from bench.gpu.stage import STAGES, measure
from bench.gpu.stages import correctness, kernels
from bench.timing import timed
from quantize.solver.quantizers import NF4_VALUES

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(tmp_path):
    return Bench("", "cpu", True, tmp_path, None, time.time() + 600, {})


@pytest.mark.filterwarnings("default")
def test_every_stage_passes_in_miniature(miniature, quantized, exported, tmp_path, monkeypatch):
    """In one process, so that torch is imported once. It is the only test of some stages."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(correctness, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setitem(timed.__kwdefaults__, "seconds", 0.0)  # a few calls each: how exact a time is does not matter
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # without g++, which takes longest
    for name, folder in (("4-bit", quantized("w4")), ("4-bit-exact", exported("w4"))):  # other tests make them too
        shutil.copytree(folder, tmp_path / "correctness" / name)
    assert miniature.parent == tmp_path
    record = Record(tmp_path / "run.json", "a command", "cpu", True)
    for stage in STAGES:
        bench = Bench(stage.name, "cpu", True, tmp_path, None, time.time() + 600, ceilings(record))
        record.outcomes.append(
            Outcome(stage.name, stage.title, figures=list(measure(stage.module or stage.name, bench)))
        )
    assert all(outcome.figures for outcome in record.outcomes)
    figures = {figure.name: figure for outcome in record.outcomes for figure in outcome.figures}
    assert figures["copy bandwidth"].value > 0
    assert figures["4 bits: greedy answers changed"].count == 1
    assert "passes" in figures["4 bits: verify decoder.cpu.onnx"].note
    for name in ("a cache that held NaN", "windows filled 3 times", "batch of 4"):
        assert figures[f"{name}: largest difference of logits"].value < 0.1  # with int8 activations
    for variant in VARIANTS:
        assert figures[f"{variant}: step at 70 tokens"].value > 0
    assert figures["8 at once"].value > 0
    assert figures["drafts: checking 3"].unit == "steps"
    assert figures["stored: largest"].value > figures["stored: A4 page"].value
    assert figures["64 decoder layers"].note == "multiplied, not measured"
    assert figures["ours against transformers, bf16 with torch.compile: step"].value > 0
    shares = [figure.share for figure in figures.values() if figure.share]
    assert shares
    assert all(0 < share < 10 for share in shares)  # other processes may have slowed down what is the ceiling


ON_CUDA = """
import json, subprocess, sys
options = "--device", "cuda", "--tiny", "--only", "kernels", "--output", sys.argv[1]
command = [sys.executable, "-m", "bench.gpu", *options]
done = subprocess.run(command, capture_output=True, text=True, cwd=sys.argv[2])
print(json.dumps([done.returncode, done.stdout[-3000:]]))
"""


def test_kernels_run_on_a_gpu_in_its_types(cuda_stub, tmp_path):
    """On the stand-in, whose times mean nothing: blocks of 32 through the kernels that repack them, bfloat16, NF4."""
    code, said = cuda_stub.run(ON_CUDA, tmp_path / "run.json", ROOT)
    assert code == 0, said
    (stage,) = read_record(tmp_path / "run.json")["stages"]
    kinds = {figure.name.split(";")[0] for figure in stage["figures"]}
    assert kinds == {kind.name for kind in kernels.KINDS}


MEMORY = """
import json, time
from pathlib import Path
from bench.gpu.bench import Bench, OutOfTimeError
from bench.gpu.memory import PeakMemory
from runtime.ort.buffer import Buffer
from runtime.ort.device import Device

Buffer.empty((1,), "int8", Device("cuda"))
with PeakMemory(Bench("", "cuda", True, Path(), None, 0.0, {})) as memory:
    held = Buffer.empty((64 << 20,), "int8", Device("cuda"))
    time.sleep(0.05)
print(json.dumps(memory.bytes))
"""


def test_peak_memory_is_the_gpus(cuda_stub):
    assert cuda_stub.run(MEMORY) == pytest.approx(64 << 20, rel=0.05)


@pytest.mark.parametrize("kind", kernels.CPU_KINDS, ids=lambda kind: kind.name)
def test_products_are_those_of_the_weights(kind, tmp_path):
    """What is timed is what a decoder does: codes from the lowest bits on, and a scale for each block."""
    outputs, inputs, copies = 64, 256, 2
    kernels.save_products(tmp_path / "p.onnx", kind, 4, outputs, inputs, copies)
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
    """So much that what else this process gets or gives back meanwhile, some 30 MiB, hardly counts."""
    with PeakMemory(bench) as memory:
        held = np.ones(512 << 20, np.uint8)
        time.sleep(0.05)
        del held
    assert memory.bytes == pytest.approx(512 << 20, rel=0.2)
