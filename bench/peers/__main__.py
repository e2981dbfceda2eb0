"""`python -m bench.peers`: our 4-bit GPTQ beside llm-compressor's and AutoRound, on the bundled reader.

All see the same calibration documents in the same order, as the same token ids and pixels, one at a time, and quantize
the same weights: the decoder's linears, 4 bits, symmetric, groups of 128. All else stays in 16 bits. Each quantizer of
others runs in an environment of its own, which the command makes (1.5 GB each) and keeps, as it keeps their weights.
What is measured is here, with one program: the weights that came back are put into the reader (transformers, float32 on
the CPU) and its next-token distributions on held-out documents compared with those of the FP16 weights.
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
from bench.peers.environments import AUTO_ROUND, LLM_COMPRESSOR, Peer, environment, quantized_by
from bench.peers.weights import is_decoder_linear, read_weights, write_samples
from bench.provenance import provenance
from calib_data import READER
from console.errors import run_command
from console.progress import track
from quantize.calibration.samples import read_samples
from quantize.pipeline import quantize
from quantize.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray

app = typer.Typer(add_completion=False)
HELD_OUT = 11  # the seed of the documents to measure on
OURS = "this toolkit, GPTQ"
NOTES = """\
Mean KL(FP16 ‖ quantized) in nats a token of the true answers, teacher-forced, over all calibration seeds; in brackets
the 95 % interval over documents. By seed: the least and the greatest mean. Ratios are to the first row, their intervals
over the same documents. Seconds: of one run on this machine's CPU, for the others without loading a model. All compute
in float32; ours keeps hidden states and scales in float16, as it writes them. Nearest does not depend on documents.
llm-compressor: its defaults (sequential, static act-order, damping 0.01), and its two other ways to choose scales.
AutoRound: its defaults (signed gradient descent on rounding and ranges, 200 iterations, 8 documents a step) but for
float32. As it comes, it runs all blocks with the first one's mask, a sliding window ("own masks": told that they
differ), and keeps the iteration of least loss, of batches whose documents differ in length ("last iteration": told not
to). A few tokens make most of a mean: differences inside the intervals are noise."""


@dataclass(frozen=True)
class Method:
    """A row of the table. settings: for the module of `peer`, or for `quantize` where there is none."""

    name: str
    settings: dict[str, Any]
    peer: Peer | None = None


@dataclass
class Measured:
    """For each calibration seed, KL of every answer token by document, and the seconds that quantizing took."""

    kl: list[list[NDArray[np.float64]]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def pooled(self) -> list[NDArray[np.float64]]:
        """KL of every answer token by document, of all seeds together."""
        return [np.concatenate(seeds) for seeds in zip(*self.kl, strict=True)]


def _auto_round(name: str, *, iters: int = 200, own_masks: bool = True, last_iteration: bool = True) -> Method:
    return Method(name, {"iters": iters, "own_masks": own_masks, "last_iteration": last_iteration}, AUTO_ROUND)


METHODS = (
    Method(OURS, {}),
    Method("nearest", {"solver": "rtn", "count": 1}),
    Method("llm-compressor GPTQ", {"observer": None}, LLM_COMPRESSOR),
    Method("llm-compressor GPTQ, MSE scales", {"observer": "mse"}, LLM_COMPRESSOR),
    Method("llm-compressor GPTQ, imatrix scales", {"observer": "imatrix_mse"}, LLM_COMPRESSOR),
    _auto_round("AutoRound, own masks, last iteration"),
)
SLOW = (
    _auto_round("AutoRound as it comes", own_masks=False, last_iteration=False),
    _auto_round("AutoRound, own masks", last_iteration=False),
    _auto_round("AutoRound, own masks, last of 1000 iterations", iters=1000),
)


def weights_of(
    method: Method, seed: int, samples: int, documents: Path, cache: Path
) -> tuple[Mapping[str, torch.Tensor], float]:
    """The decoder's weights as a method quantizes them for a calibration seed, and the seconds that it took."""
    if method.peer is not None:
        path = quantized_by(method.peer, method.settings, READER, documents, cache)
        with safe_open(path, "pt") as file:
            return read_weights(path, READER), float(file.metadata()["seconds"])
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(
            READER, Path(place) / "quantized", vision_bits=16, head_bits=16, count=samples, seed=seed, reference=0
        )
        report = quantize(replace(settings, **method.settings))
        assert report is not None
        weights = dequantized(Path(place) / "quantized")
        return {name: weight for name, weight in weights.items() if is_decoder_linear(name)}, report.seconds


def line(method: Method, measured: Measured, ours: Measured) -> str:
    """One row of the table."""
    pooled, means = measured.pooled(), [float(np.concatenate(seed).mean()) for seed in measured.kl]
    _, low, high = interval(pooled)
    return (
        f"| {method.name} | {method.peer.version if method.peer else '–'} "
        f"| {np.concatenate(pooled).mean():.5f} ({low:.5f}–{high:.5f}) | {min(means):.5f}–{max(means):.5f} "
        f"| {ratio(pooled, ours.pooled())} | {np.mean(measured.seconds):.0f} |"
    )


def ratio(theirs: Sequence[NDArray[np.float64]], ours: Sequence[NDArray[np.float64]], rounds: int = 2000) -> str:
    """The ratio of two means over the same tokens, and its 95 % interval, documents drawn with replacement."""
    sums = np.array([[kl.sum() for kl in theirs], [kl.sum() for kl in ours]])
    drawn = np.random.default_rng(0).integers(0, len(ours), (rounds, len(ours)))
    over, under = sums[:, drawn].sum(-1)
    low, high = np.quantile(over / under, (0.025, 0.975))
    return f"{sums[0].sum() / sums[1].sum():.2f} ({low:.2f}–{high:.2f})"


@app.command()
def main(
    seeds: Annotated[int, typer.Option(min=1, help="Calibration seeds: 0, 1, ...")] = 5,
    samples: Annotated[int, typer.Option(min=1, help="Calibration documents.")] = 128,
    documents: Annotated[int, typer.Option(min=2, help="Held-out documents to measure on.")] = 200,
    cache: Annotated[Path, typer.Option(help="Folder of the environments and of what was quantized in them.")] = Path(
        "build/peers"
    ),
    slow: Annotated[
        bool, typer.Option("--slow", help="AutoRound as it comes and at 1000 iterations, too: half an hour a seed.")
    ] = False,
) -> None:
    """Quantize the bundled reader to 4 bits with ours and with others, and compare each with FP16."""
    from transformers import AutoConfig

    methods = METHODS + SLOW if slow else METHODS
    for peer in (LLM_COMPRESSOR, AUTO_ROUND):
        environment(peer, cache)  # an hour before its turn, if it cannot be installed
    config = AutoConfig.from_pretrained(READER)
    held_out = read_samples(Settings(READER, count=documents, seed=HELD_OUT), config, split="evaluation")
    divergence = Divergence(READER, list(held_out))
    measured = {method.name: Measured() for method in methods}
    for seed in range(seeds):
        given = cache / f"{samples}-documents-of-seed-{seed}.safetensors"
        write_samples(read_samples(Settings(READER, count=samples, seed=seed), config), given)
        for method in track(methods, f"seed {seed}"):
            weights, seconds = weights_of(method, seed, samples, given, cache)
            measured[method.name].kl.append(divergence(weights))
            measured[method.name].seconds.append(seconds)
    print("| 4 bits | version | mean KL, nats (95 %) | by seed | ratio (95 %) | seconds |\n|---|---|---|---|---|---|")
    for method in methods:
        print(line(method, measured[method.name], measured[OURS]))
    print(f"\n{NOTES}\n")
    command = f"python -m bench.peers --seeds {seeds} --samples {samples} --documents {documents}{' --slow' * slow}"
    print(f"{provenance(command)} {LLM_COMPRESSOR.versions}; {AUTO_ROUND.versions}.")


if __name__ == "__main__":
    run_command(app)
