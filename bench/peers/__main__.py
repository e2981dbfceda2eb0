"""`python -m bench.peers`: accuracy of our 4-bit GPTQ and NF4 against other quantizers.

On two models: the bundled reader, and SmolLM2 135M, a language model of another architecture that was trained on real
text. All quantizers see the same calibration documents in the same order, as the same token ids and pixels, one at a
time. All quantize the decoder's linears, symmetric, in the same groups. Every peer runs in an environment of its own,
which the command makes (1.5 GB each) and keeps, and so are its weights. One program measures all of them: it loads the
weights into the model (transformers, float32 on the CPU), and compares next-token distributions on held-out documents
with those of the original weights.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from safetensors import safe_open

from bench.dequantized import dequantized
from bench.divergence import Divergence, interval
from bench.peers.environments import AUTO_ROUND, GPTQ_MODEL, LLM_COMPRESSOR, Peer, environment, quantized_by
from bench.peers.subjects import Name, make_subject
from bench.peers.weights import is_decoder_linear, read_weights, write_samples
from bench.provenance import provenance
from console.errors import run_command
from console.progress import track
from quantize.pipeline import quantize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from bench.peers.subjects import Subject

app = typer.Typer(add_completion=False)
OURS = "this toolkit, GPTQ"
NOTES = """\
Mean KL(original ‖ quantized) in nats a token of the true answers, teacher-forced, over all calibration seeds, with the
95 % interval over documents. By seed: the smallest and the largest mean. Ratios are to the first row, their intervals
over the same documents. Seconds: one run on this machine's CPU, for the peers without loading the model. All compute in
float32; ours keeps hidden states and scales in float16, as it writes them. RTN and bitsandbytes do not depend on
documents. llm-compressor: its defaults (sequential, static act-order, damping 0.01), and its two other ways to choose
scales. GPTQModel: its defaults (group-aware order, damping 0.05), and scales of least squared error. AutoRound: its
defaults (signed gradient descent on rounding and ranges, 200 iterations, 8 documents a step), but in float32. By
default it runs all blocks with the mask of the first one, a sliding window in the reader ("own masks" corrects that).
It also keeps the iteration with the smallest loss, although batches differ in length ("last iteration" turns that off).
AutoRound light: its own faster recipe, 50 iterations with a learning rate of 0.005; on the first seed only.
A few tokens make most of a mean: differences inside the intervals are noise."""


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    name: str
    settings: dict[str, Any]
    """For the module of the peer, or for `quantize`."""
    peer: Peer | None = None
    """None is this toolkit."""
    one_seed: bool = False
    """Whether only the first calibration seed is run."""


@dataclass
class Measured:
    """The results of a method, by calibration seed."""

    kl: list[list[NDArray[np.float64]]] = field(default_factory=list)
    """KL of every answer token [T] of each document."""
    seconds: list[float] = field(default_factory=list)
    """Time of quantizing."""

    def pooled(self, seeds: int | None = None) -> list[NDArray[np.float64]]:
        """KL of every answer token of each document, over all seeds or the first ones."""
        return [np.concatenate(tokens) for tokens in zip(*self.kl[:seeds], strict=True)]


def _auto_round(
    name: str, *, iters: int = 200, lr: float | None = None, own_masks: bool = True, last_iteration: bool = True
) -> Method:
    settings = {"iters": iters, "lr": lr, "own_masks": own_masks, "last_iteration": last_iteration}
    return Method(name, settings, AUTO_ROUND)


METHODS = (
    Method(OURS, {}),
    Method("RTN", {"solver": "rtn", "count": 1}),
    Method("llm-compressor GPTQ", {"observer": None}, LLM_COMPRESSOR),
    Method("llm-compressor GPTQ, MSE scales", {"observer": "mse"}, LLM_COMPRESSOR),
    Method("llm-compressor GPTQ, imatrix scales", {"observer": "imatrix_mse"}, LLM_COMPRESSOR),
)
AUTOROUND = _auto_round("AutoRound, own masks, last iteration")  # hours on SmolLM2
LIGHT = replace(_auto_round("AutoRound light, last iteration", iters=50, lr=5e-3), one_seed=True)  # an hour
LANGUAGE_MODEL = (
    Method("GPTQModel", {"mse": 0.0}, GPTQ_MODEL),
    Method("GPTQModel, MSE scales", {"mse": 2.0}, GPTQ_MODEL),
)
NF4 = (
    Method("this toolkit, NF4", {"quant_type": "nf4", "format": None, "group_size": None}),
    Method("bitsandbytes NF4", {"quant_type": "nf4", "format": None, "group_size": None, "solver": "rtn", "count": 1}),
)
SLOW = (
    _auto_round("AutoRound, defaults", own_masks=False, last_iteration=False),
    _auto_round("AutoRound, own masks", last_iteration=False),
    _auto_round("AutoRound, own masks, last of 1000 iterations", iters=1000),
)


def quantized_weights(
    method: Method, subject: Subject, seed: int, count: int, cache: Path
) -> tuple[Mapping[str, torch.Tensor], float]:
    """Quantize with a method on calibration documents of a seed; the decoder's weights, and the seconds it took."""
    if method.peer is not None:
        settings = {**method.settings, "group_size": subject.group_size}
        documents = cache / f"{subject.name}-{count}-documents-of-seed-{seed}.safetensors"
        path = quantized_by(method.peer, settings, subject.folder, documents, cache)
        with safe_open(path, "pt") as file:
            return read_weights(path, subject.folder, subject.group_size), float(file.metadata()["seconds"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "quantized"
        report = quantize(replace(subject.settings(folder, count=count, seed=seed), **method.settings))
        assert report is not None
        weights = dequantized(folder)
        return {name: weight for name, weight in weights.items() if is_decoder_linear(name)}, report.seconds


def line(method: Method, measured: Measured, ours: Measured) -> str:
    """One row of the table."""
    pooled, means = measured.pooled(), [float(np.concatenate(seed).mean()) for seed in measured.kl]
    _, low, high = interval(pooled)
    return (
        f"| {method.name} | {method.peer.version if method.peer else '–'} "
        f"| {np.concatenate(pooled).mean():.5f} ({low:.5f}–{high:.5f}) | {min(means):.5f}–{max(means):.5f} "
        f"| {ratio(pooled, ours.pooled(len(means)))} | {np.mean(measured.seconds):.0f} |"
    )


def ratio(theirs: Sequence[NDArray[np.float64]], ours: Sequence[NDArray[np.float64]], rounds: int = 2000) -> str:
    """The ratio of two means over the same tokens, and its 95 % bootstrap interval over documents."""
    sums = np.array([[kl.sum() for kl in theirs], [kl.sum() for kl in ours]])
    drawn = np.random.default_rng(0).integers(0, len(ours), (rounds, len(ours)))
    over, under = sums[:, drawn].sum(-1)
    low, high = np.quantile(over / under, (0.025, 0.975))
    return f"{sums[0].sum() / sums[1].sum():.2f} ({low:.2f}–{high:.2f})"


@app.command()
def main(
    model: Annotated[Name, typer.Option(help="Model to quantize.")] = "reader",
    seeds: Annotated[int, typer.Option(min=1, help="Calibration seeds: 0, 1, ...")] = 5,
    calibration_count: Annotated[int, typer.Option(min=1, help="Calibration documents.")] = 128,
    count: Annotated[int, typer.Option(min=2, help="Held-out documents; SmolLM2 takes 70 MB each.")] = 200,
    cache: Annotated[
        Path, typer.Option(help="Folder of the environments, of SmolLM2 and of the peers' weights.")
    ] = Path("build/peers"),
    slow: Annotated[
        bool,
        typer.Option(
            "--slow",
            help="Also AutoRound by default and with 1000 iterations: half an hour a seed; on SmolLM2 many hours.",
        ),
    ] = False,
) -> None:
    """Quantize a model with this toolkit and its peers, and compare each with the original weights."""
    methods = [*METHODS, *(LANGUAGE_MODEL if model == "smollm2" else ()), *NF4]
    methods += [LIGHT] if model == "smollm2" else []
    methods += [AUTOROUND] if model == "reader" or slow else []
    methods += SLOW if slow else []
    cache = cache.resolve()  # peers run in a folder of their own
    peers = list(dict.fromkeys(method.peer for method in methods if method.peer))
    for peer in peers:
        environment(peer, cache)  # first: an installation that fails should not fail after an hour
    subject = make_subject(model, cache)
    divergence = Divergence(subject.folder, subject.held_out_samples(count))
    measured = {method.name: Measured() for method in methods}
    for seed in range(seeds):
        documents = cache / f"{subject.name}-{calibration_count}-documents-of-seed-{seed}.safetensors"
        write_samples(subject.calibration_samples(calibration_count, seed), documents)
        for method in track([method for method in methods if not (seed and method.one_seed)], f"seed {seed}"):
            weights, seconds = quantized_weights(method, subject, seed, calibration_count, cache)
            measured[method.name].kl.append(divergence(weights))
            measured[method.name].seconds.append(seconds)
    print("| 4 bits | version | mean KL, nats (95 %) | by seed | ratio (95 %) | seconds |\n|---|---|---|---|---|---|")
    for method in methods:
        print(line(method, measured[method.name], measured[OURS]))
    print(f"\n{NOTES}\n")
    options = (
        f"--model {model} --seeds {seeds} --calibration-count {calibration_count} --count {count}{' --slow' * slow}"
    )
    print(f"{provenance(f'python -m bench.peers {options}')} {'; '.join(peer.versions for peer in peers)}.")


if __name__ == "__main__":
    run_command(app)
