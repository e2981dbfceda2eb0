"""Train the bundled reader.

Glyph pages (no question, vision tower only) come first, then single lines, then documents with questions. At the end
the vision tower stays as it is, and the inputs of the decoder's linears are regularized. Muon optimizes the matrices
and AdamW the rest. The learning rates stay constant until the last minutes, and an exponential average of the weights
is exported.
"""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import typer
from torch import nn
from torch.utils.data import DataLoader

from training.batches import Batch, Batches, Stage
from training.losses import TrainedModule, losses
from training.state import ADAM, MUON, State, save

if TYPE_CHECKING:
    from pathlib import Path

STAGES = (
    Stage(until=1500, glyphs=1.0, lines=0.0, thinking=0.0),
    Stage(until=2700, glyphs=0.2, lines=0.5, thinking=0.0, shapes=4),
    Stage(until=7500, glyphs=0.1, lines=0.15, thinking=0.15),
    Stage(until=10**9, glyphs=0.0, lines=0.15, thinking=0.15),
)
MTP_FROM = 5000
"""Step from which every second one trains the MTP layer; before, the decoder's hidden state says little."""
REGULARIZE_FROM = 7500
"""Step from which one decoder layer a step is regularized, at half the learning rates."""
REGULARIZED_LAYERS = (0, 1, 2, 3, 3)
"""In turn; the last layer twice, as its inputs have the most directions."""
WARM_UP, AVERAGE = 200, 0.998
CORES = 2
"""Each works on its own part of a batch."""


def train(state: State, output: Path, seconds: float, decay: float, seed: int) -> None:
    """Train for this long, at least one step; a line of numbers every 50 steps, a checkpoint every three minutes.

    decay: seconds at the end in which the learning rates fall to zero.
    """
    batches = DataLoader(
        Batches(STAGES, seed), batch_size=None, sampler=range(state.step, 10**9), num_workers=1, prefetch_factor=6
    )
    gradients = Gradients(state.module)
    start = last = saved = time.monotonic()
    sums: dict[str, list[float]] = {}
    for batch in batches:
        regularized = (
            REGULARIZED_LAYERS[state.step % len(REGULARIZED_LAYERS)] if state.step >= REGULARIZE_FROM else None
        )
        report = gradients(batch, state.step >= MTP_FROM and state.step % 2 == 0, regularized)
        share = learning_rate(state.step - state.warm_from, seconds - (last - start), decay)
        update(state, share if regularized is None else share / 2)
        for name, number in (report | {"pages": len(batch.patches)}).items():
            sums.setdefault(name, []).append(number)
        if state.step % 50 == 0:
            _log(state, sums)
            sums = {}
        now = time.monotonic()
        state.seconds, last = state.seconds + now - last, now
        if now - saved > 180:
            save(state, output / "checkpoint.pt")
            saved = now
        if now - start > seconds:
            break


def learning_rate(step: int, left: float, decay: float) -> float:
    """Share of the peak rates: warm up, stay, and fall to zero over the last `decay` seconds of the run."""
    return min(1.0, (step + 1) / WARM_UP, max(left, 0.0) / decay if decay else 1.0)


def update(state: State, share: float) -> None:
    """Do one step of the optimizers at a share of their peak rates."""
    nn.utils.clip_grad_norm_(state.module.parameters(), 1.0)
    for optimizer, peak in zip(state.optimizers, (MUON, ADAM), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * share
        optimizer.step()
    state.step += 1
    _update_average(state)


def _update_average(state: State) -> None:
    """Move the exported average towards the weights; slower as training goes on."""
    keep = min(AVERAGE, (1 + state.step) / (10 + state.step))
    weights = state.module.reader.state_dict()
    names = list(weights)
    torch._foreach_lerp_([state.average[n] for n in names], [weights[n] for n in names], 1 - keep)


class Gradients:
    """Gradients in bfloat16, a part of the batch on each core, added up in the module's float32 parameters.

    Two threads of one core each are a third faster than one operation split over two cores, and bfloat16 products are
    more than twice as fast on a processor that has them.
    """

    def __init__(self, module: TrainedModule) -> None:
        self.module = module
        self.replicas = [copy.deepcopy(module) for _ in range(CORES)]
        for parameter in (p for replica in self.replicas for p in replica.parameters()):
            parameter.data = parameter.data.bfloat16()  # buffers, such as RoPE frequencies, stay float32
        self.threads = ThreadPoolExecutor(CORES, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, batch: Batch, with_mtp: bool, regularized: int | None = None) -> dict[str, float]:
        """Set `.grad` of every parameter to the mean over the parts; return the mean of what they report."""
        pairs = zip(self.replicas, split(batch, CORES), strict=True)
        reports = list(self.threads.map(lambda pair: self._part(pair[0], pair[1], with_mtp, regularized), pairs))
        replicated = zip(*(replica.parameters() for replica in self.replicas), strict=True)
        for parameter, parts in zip(self.module.parameters(), replicated, strict=True):
            grads = [part.grad.float() for part in parts if part.grad is not None]
            parameter.grad = sum(grads[1:], grads[0]) / CORES if grads else None
        return {name: sum(report[name] for report in reports) / CORES for name in reports[0]}

    def _part(self, replica: TrainedModule, part: Batch, with_mtp: bool, regularized: int | None) -> dict[str, float]:
        with torch.no_grad():
            torch._foreach_copy_(list(replica.parameters()), list(self.module.parameters()))
        replica.zero_grad()
        loss, report = losses(replica, part, with_mtp, regularized)
        loss.backward()
        return report


def split(batch: Batch, parts: int) -> list[Batch]:
    """Split the pages of a batch into equal parts."""
    names = ("patches", "characters", "tokens", "answer", "attention_target")
    pieces = zip(*(getattr(batch, name).chunk(parts) for name in names), strict=True)
    return [replace(batch, **dict(zip(names, piece, strict=True))) for piece in pieces]


def _log(state: State, sums: dict[str, list[float]]) -> None:
    row = {name: sum(numbers) / len(numbers) for name, numbers in sums.items()}
    row = {"step": state.step, "minutes": round(state.seconds / 60, 2)} | {n: round(x, 4) for n, x in row.items()}
    state.curve.append(row)
    typer.echo("  ".join(f"{name} {number}" for name, number in row.items()))
