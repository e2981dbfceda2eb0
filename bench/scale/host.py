"""Time of the host's work for a token and for a page, at the sizes of EXAONE 4.5 33B.

Milliseconds of processor time of one core; on a quiet machine the GPU waits that long. Embeddings, logits and images
are random, the tokenizer is the bundled reader's; masks have a synthetic one, of the release's size.
"""

from __future__ import annotations

import tempfile
from itertools import cycle
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from PIL import Image

from bench.provenance import provenance
from bench.scale.folders import RELEASED
from bench.scale.mask import mask_work
from bench.timing import timed
from calib_data import READER
from console.files import read_object
from runtime.chat import Chat
from runtime.decoding.sampling import Sampling
from runtime.exported import look_up
from runtime.inputs.images import ImageSettings, image_grid, preprocess
from runtime.inputs.windows import vision_index
from runtime.ort.buffer import Buffer
from runtime.ort.device import HOST
from runtime.ort.manifest import VisionSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bench.timing import Quartiles

    Work = dict[str, Callable[[], object]]

WARM_UP = 3
TOKENS_A_PAGE = 20  # work for a token is repeated more often by this factor
VOCABULARY = 153600  # size in the release
PROMPT = 4096  # tokens
ANSWER = 1000  # tokens generated before the measurement
DOCUMENTS = Sampling(seed=0, temperature=0.6, top_k=20, top_p=0.95, presence_penalty=1.5)
GENERAL = Sampling(seed=0, temperature=1.0, top_p=0.95, presence_penalty=1.5)
TEXT = Sampling(seed=0, temperature=1.0, top_p=0.95)
A4 = (1240, 1754)  # pixels, at 150 dpi
LARGEST = (3000, 3000)  # pixels; preprocessing reduces it to the largest size


def host_costs(vocabulary: int, repetitions: int) -> dict[str, Quartiles]:
    """Processor seconds of the work for a token and, from fewer repetitions, for a page; by name."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        embeddings = _embeddings(Path(folder) / "embeddings", vocabulary, random)
        token, page = _token_work(embeddings, random), _page_work(embeddings, random)
        costs = {name: _time(work, repetitions * TOKENS_A_PAGE) for name, work in token.items()}
        return costs | {name: _time(work, repetitions) for name, work in page.items()}


def mask_costs(vocabulary: int, repetitions: int) -> dict[str, Quartiles]:
    """Processor seconds that structured output adds to a token: the mean of a whole answer's, forced ones included."""
    logits = _logits(vocabulary, np.random.default_rng(0))
    work, tokens = mask_work(vocabulary, logits)
    return {"mask, JSON schema": _time(work, repetitions).scaled(1 / tokens)}


def _time(work: Callable[[], object], repetitions: int) -> Quartiles:
    warm_up = min(WARM_UP, repetitions)
    return timed(work, least=repetitions, most=repetitions, warm_up=warm_up, clock=process_time)


def _embeddings(path: Path, vocabulary: int, random: np.random.Generator) -> NDArray[np.float16]:
    """Embeddings [V, H] in a sparse file, of which the first rows are written."""
    shape = (vocabulary, int(read_object(RELEASED)["text_config"]["hidden_size"]))
    written = np.memmap(path, np.float16, "w+", 0, shape)
    written[:PROMPT] = random.normal(size=written[:PROMPT].shape)
    written.flush()
    return np.memmap(path, np.float16, "r", 0, shape)


def _token_work(embeddings: NDArray[np.float16], random: np.random.Generator) -> Work:
    vocabulary = len(embeddings)
    flat = _logits(vocabulary, random)
    peaked = _peaked(flat, random)
    buffer = Buffer.from_array(peaked[0][None, None], "float32", HOST)
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
    """Normal logits [8, V]: three quarters of the tokens share 95 % of the probability."""
    return random.normal(size=(8, vocabulary)).astype(np.float32)


def _peaked(logits: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """The same logits with twenty much likelier tokens, as a language model has them."""
    above = random.integers(0, logits.shape[1], (len(logits), 20))
    peaked = logits.copy()
    np.put_along_axis(peaked, above, np.linspace(6, 18, 20, dtype=np.float32)[None], axis=1)
    return peaked


def _sampling(sampling: Sampling, logits: NDArray[np.float32]) -> Callable[[], None]:
    """Sample the next token of an answer with each call."""
    sampler, rows, generated = sampling.sampler(), cycle(logits), list(range(min(ANSWER, logits.shape[1])))
    return lambda: generated.append(sampler(next(rows), generated))


def _page_work(embeddings: NDArray[np.float16], random: np.random.Generator) -> Work:
    vision, settings = _vision(), ImageSettings.from_folder(READER)
    page, largest = (Image.fromarray(random.integers(0, 256, (*size[::-1], 3), np.uint8)) for size in (A4, LARGEST))
    grid = (1, *image_grid(largest.height, largest.width, settings))
    prompt = random.integers(0, min(PROMPT, len(embeddings)), PROMPT)
    return {
        "prepare an A4 page": lambda: preprocess(page, settings),
        "prepare the largest image": lambda: preprocess(largest, settings),
        "vision indices of the largest image": lambda: vision_index([grid], vision),
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


def table(costs: dict[str, Quartiles]) -> str:
    """Markdown, one row for each kind of work."""
    lines = ["| work | ms | quartiles |", "|---|---|---|"]
    for name, cost in costs.items():
        ms = cost.scaled(1000)
        lines.append(f"| {name} | {ms.median:.3g} | {ms.low:.3g}–{ms.high:.3g} |")
    return "\n".join(lines)


def main(
    repetitions: Annotated[
        int, typer.Option(min=1, help="Repetitions of the work for a page; 20 times as many for a token.")
    ] = 30,
) -> None:
    """Time the host's work for a token and for a page."""
    print(table(host_costs(VOCABULARY, repetitions) | mask_costs(VOCABULARY, repetitions)))
    print(f"\n{provenance(f'python -m bench.scale host --repetitions {repetitions}')}")
