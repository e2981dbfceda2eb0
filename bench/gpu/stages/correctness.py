"""Correctness on the GPU: the bundled reader in every format, against the exact graphs on the CPU.

Formats are measured in parallel, each in a process of its own, because the CPU's part takes longest.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from bench.gpu.figures import Figure
from bench.gpu.stages.equivalence import equivalence
from calib_data import READER
from calib_data.sources import open_documents
from export import export, verify
from quantize.pipeline import quantize
from quantize.settings import Settings
from runtime.compare.gate import Gates
from runtime.compare.measuring.baseline import FolderBaseline
from runtime.compare.measuring.measure import measure as compare
from runtime.compare.summary import summarize_candidate
from runtime.model import Model
from runtime.ort.sessions import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.gpu.bench import Bench

THREADS, THREADS_TINY = 2, 1  # of each process


@dataclass(frozen=True)
class Kind:
    """One way to quantize and export the reader."""

    name: str
    weights: str
    """A key of WEIGHTS."""
    exported: dict[str, Any] = field(default_factory=dict)
    """Arguments of export."""
    on_gpu: dict[str, Any] = field(default_factory=dict)
    """Further ones for the GPU alone."""


WEIGHTS: dict[str, dict[str, Any] | None] = {  # settings of quantize; None leaves the reader in 16 bits
    "4-bit": {"bits": 4},
    "4-bit-bf16": {"bits": 4, "dtype": "bfloat16"},
    "8-bit": {"bits": 8},
    "nf4": {"quant_type": "nf4"},
    "16-bit": None,
}
KINDS = (
    Kind("4 bits", "4-bit"),
    Kind("4 bits, bf16", "4-bit-bf16"),
    Kind("4 bits, block 32", "4-bit", on_gpu={"block_size": 32}),
    Kind("4 bits, int8 KV", "4-bit", {"kv_bits": 8}),
    Kind("4 bits, full KV", "4-bit", {"kv_layout": "full"}),
    Kind("8 bits", "8-bit"),
    Kind("NF4", "nf4"),
    Kind("unquantized", "16-bit"),
)
TINY = KINDS[:1]


def measure(bench: Bench) -> Iterator[Figure]:
    """Verify each format, compare it with the CPU, and compare all ways to decode the first one."""
    kinds = TINY if bench.tiny else KINDS
    os.environ["OMP_NUM_THREADS"] = str(_threads(bench))
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        running = {pool.submit(_kind, bench, kind): kind for kind in kinds}
        for done in as_completed(running):
            kind = running[done]
            if error := done.exception():
                yield Figure(kind.name, "failed", note=" ".join(str(error).split())[:300])
                continue
            yield from done.result()
            if kind == KINDS[0]:
                yield from equivalence(bench, _candidate(bench, kind))


def _threads(bench: Bench) -> int:
    return THREADS_TINY if bench.tiny else THREADS


def _candidate(bench: Bench, kind: Kind) -> Path:
    return bench.scratch / "correctness" / kind.name.replace(" ", "-").replace(",", "")


def _kind(bench: Bench, kind: Kind) -> list[Figure]:
    """Export the quantized reader for both devices and compare them."""
    reference, candidate = _reference(bench, kind), _candidate(bench, kind)
    shutil.copytree(_quantized(bench, kind.weights), candidate)
    if bench.on_gpu:
        export(candidate, "cuda", **kind.exported, **kind.on_gpu)
    else:
        export(candidate, "cpu", **kind.exported)
    return [*_verified(bench, kind, candidate), *_compared(bench, kind, reference, candidate)]


def _quantized(bench: Bench, weights: str) -> Path:
    """The reader with these weights, quantized on the device."""
    settings = WEIGHTS[weights]
    if settings is None:
        return READER

    def make(folder: Path) -> None:
        count = 4 if bench.tiny else 16
        quantize(Settings(READER, folder, count=count, reference=0, device=bench.device, **settings))

    return _once(bench.scratch / "correctness" / weights, make)


def _reference(bench: Bench, kind: Kind) -> Path:
    """The same weights with exact graphs for the CPU; kinds that differ on the GPU alone share them."""
    name = "-".join([kind.weights, *map(str, kind.exported.values()), "exact"])

    def make(folder: Path) -> None:
        shutil.copytree(_quantized(bench, kind.weights), folder)
        export(folder, "cpu", exact=True, **kind.exported)

    return _once(bench.scratch / "correctness" / name, make)


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder, unless another process has made it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.exists():
            make(folder)
    return folder


def _verified(bench: Bench, kind: Kind, folder: Path) -> Iterator[Figure]:
    for check in verify(folder, bench.device).checks:
        verdict = "passes" if check.passed else "FAILS"
        yield Figure(
            f"{kind.name}: verify {check.name}", check.error, note=f"{verdict}; tolerance {check.tolerance:.1e}"
        )


def _compared(bench: Bench, kind: Kind, reference: Path, candidate: Path) -> Iterator[Figure]:
    """Mean KL along the true answers, and the number of changed greedy answers."""
    count = 3 if bench.tiny else 100
    options = Options(threads=_threads(bench))
    baseline = FolderBaseline(Model(reference, "cpu", options))
    model = Model(candidate, bench.device, options)
    documents = open_documents("rendered", split="evaluation", count=count, seed=0)
    measured = [compare(baseline, [model], document) for document in documents]
    side = summarize_candidate(kind.name, 0, measured, Gates())
    kl = side.mean_kl
    note = f"nats; 95 % interval {kl.low:.2g} to {kl.high:.2g}"
    yield Figure(f"{kind.name}: mean KL", kl.value, count=count, note=note)
    assert side.answers_changed is not None
    yield Figure(f"{kind.name}: greedy answers changed", side.answers_changed, f"of {count}")
