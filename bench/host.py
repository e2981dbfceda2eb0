"""`python -m bench.host`: what the host computes for a token and for a page, at the sizes of EXAONE 4.5 33B.

Milliseconds of one core, by processor time: on a quiet machine, so long the GPU waits. Embeddings, logits and pictures
are random, the tokenizer is the bundled reader's.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from PIL import Image

from bench.provenance import provenance
from bench.released_widths import RELEASED
from calib_data import READER
from console.errors import run_command
from console.files import read_object
from runtime.chat import Chat
from runtime.decoding.sampling import Sampling
from runtime.exported import look_up
from runtime.inputs.images import ImageSettings, image_grid, preprocess
from runtime.inputs.windows import vision_index
from runtime.ort.manifest import VisionSettings
from runtime.ort.sessions import HOST, Buffer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Work = dict[str, Callable[[], object]]

app = typer.Typer(add_completion=False)
WARM_UP = 3
TOKENS_A_PAGE = 20  # what is done for a token is measured so many times as often as what is done for a page
VOCABULARY = 153600  # of the release
PROMPT = 4096  # tokens
ANSWER = 1000  # tokens generated before the first one that is measured
DOCUMENTS = Sampling(seed=0, temperature=0.6, top_k=20, top_p=0.95, presence_penalty=1.5)
GENERAL = Sampling(seed=0, temperature=1.0, top_p=0.95, presence_penalty=1.5)
TEXT = Sampling(seed=0, temperature=1.0, top_p=0.95)
A4 = (1240, 1754)  # pixels, 150 an inch
LARGEST = (3000, 3000)  # more than the model looks at


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes, in milliseconds: the median, and the quartiles around it."""

    name: str
    median: float
    low: float
    high: float


def host_costs(vocabulary: int, repetitions: int) -> list[Cost]:
    """Measure the work for a token, and `repetitions` times that for a page."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        embeddings = _embeddings(Path(folder) / "embeddings", vocabulary, random)
        of_token, of_page = _of_token(embeddings, random), _of_page(embeddings, random)
        costs = [_measure(name, work, repetitions * TOKENS_A_PAGE) for name, work in of_token.items()]
        return costs + [_measure(name, work, repetitions) for name, work in of_page.items()]


def _measure(name: str, work: Callable[[], object], repetitions: int) -> Cost:
    times = []
    for _ in range(WARM_UP + repetitions):
        started = process_time()
        work()
        times.append(1000 * (process_time() - started))
    low, median, high = np.quantile(times[WARM_UP:], [0.25, 0.5, 0.75])
    return Cost(name, float(median), float(low), float(high))


def _embeddings(path: Path, vocabulary: int, random: np.random.Generator) -> NDArray[np.float16]:
    """Embeddings [V, H] in a file, whose first rows are written and the others a hole."""
    shape = (vocabulary, int(read_object(RELEASED)["text_config"]["hidden_size"]))
    written = np.memmap(path, np.float16, "w+", 0, shape)
    written[:PROMPT] = random.normal(size=written[:PROMPT].shape)
    written.flush()
    return np.memmap(path, np.float16, "r", 0, shape)


def _of_token(embeddings: NDArray[np.float16], random: np.random.Generator) -> Work:
    vocabulary = len(embeddings)
    flat = _logits(vocabulary, random)
    peaked = _peaked(flat, random)
    buffer = Buffer.of(peaked[0][None, None], "float32", HOST)
    ids = cycle(np.arange(min(PROMPT, vocabulary)).reshape(-1, 1))
    chat = Chat(READER)
    stream, words = chat.stream_answer(thinking=False), cycle(chat.encode_text("Total amount due: 12,345.67 EUR\n"))
    return {
        "embed a token": lambda: look_up(embeddings, next(ids)),
        "copy the logits": lambda: np.asarray(buffer.read(), np.float32),
        "look for NaN": lambda: np.isfinite(peaked[0].max(-1)).all(),
        "sample, documents (0.6, top k 20, top p 0.95, presence 1.5)": _sampling(DOCUMENTS, peaked),
        "sample, general (1.0, top p 0.95, presence 1.5)": _sampling(GENERAL, peaked),
        "sample, general, over flat logits": _sampling(GENERAL, flat),
        "sample, text (1.0, top p 0.95)": _sampling(TEXT, peaked),
        "sample, greedy": _sampling(Sampling(), peaked),
        "detokenize": lambda: stream.push(next(words)),
    }


def _logits(vocabulary: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Logits [8, V], normal: three quarters of the tokens share 95 % of the probability."""
    return random.normal(size=(8, vocabulary)).astype(np.float32)


def _peaked(logits: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """The same with twenty tokens above them, as a language model has it."""
    above = random.integers(0, logits.shape[1], (len(logits), 20))
    peaked = logits.copy()
    np.put_along_axis(peaked, above, np.linspace(6, 18, 20, dtype=np.float32)[None], axis=1)
    return peaked


def _sampling(sampling: Sampling, logits: NDArray[np.float32]) -> Callable[[], None]:
    """An answer that goes on by a token a call."""
    sampler, rows, generated = sampling.sampler(), cycle(logits), list(range(min(ANSWER, logits.shape[1])))
    return lambda: generated.append(sampler(next(rows), generated))


def _of_page(embeddings: NDArray[np.float16], random: np.random.Generator) -> Work:
    vision, settings = _vision(), ImageSettings.from_folder(READER)
    page, largest = (Image.fromarray(random.integers(0, 256, (*size[::-1], 3), np.uint8)) for size in (A4, LARGEST))
    grid = (1, *image_grid(largest.height, largest.width, settings))
    prompt = random.integers(0, min(PROMPT, len(embeddings)), PROMPT)
    return {
        "prepare an A4 page": lambda: preprocess(page, settings),
        "prepare the largest picture": lambda: preprocess(largest, settings),
        "vision indices of the largest picture": lambda: vision_index([grid], vision),
        f"embed a prompt of {PROMPT} tokens": lambda: look_up(embeddings, prompt),
    }


def _vision() -> VisionSettings:
    config = read_object(RELEASED)["vision_config"]
    return VisionSettings(
        head_dim=config["hidden_size"] // config["num_heads"],
        patch_size=config["patch_size"],
        merge_size=config["spatial_merge_size"],
        window_size=config["window_size"],
    )


def table(costs: list[Cost]) -> str:
    """Markdown, a line a piece of work."""
    lines = ["| work | ms | quartiles |", "|---|---|---|"]
    lines += [f"| {cost.name} | {cost.median:.3g} | {cost.low:.3g}–{cost.high:.3g} |" for cost in costs]
    return "\n".join(lines)


@app.command()
def main(
    vocabulary: Annotated[int, typer.Option(min=1, help="Tokens of the vocabulary.")] = VOCABULARY,
    repetitions: Annotated[int, typer.Option(min=1, help="Of a page; of a token 20 times as many.")] = 30,
) -> None:
    """Measure what the host computes for a token and for a page."""
    costs = host_costs(vocabulary, repetitions)
    print(table(costs))
    command = f"python -m bench.host --vocabulary {vocabulary} --repetitions {repetitions}"
    print(f"\n{provenance(command)}")


if __name__ == "__main__":
    run_command(app)
