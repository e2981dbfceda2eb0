"""`python -m runtime`: generate, evaluate and compare exported folders."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from calib_data.errors import InputError, run_command
from calib_data.images import open_image
from calib_data.progress import track
from calib_data.render import Kind
from calib_data.sources import open_documents
from runtime import compare as comparing
from runtime import evaluate as evaluating
from runtime.generate import Model
from runtime.sampling import Sampling
from runtime.sessions import Device
from runtime.video import open_video

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.prompt import Chat

app = typer.Typer(add_completion=False)

ModelOption = Annotated[Path, typer.Option(help="Exported model folder.")]
DeviceOption = Annotated[Device, typer.Option(help="Where to run; the folder must be exported for it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DocumentsOption = Annotated[int, typer.Option(min=1, help="How many documents.")]
SeedOption = Annotated[int, typer.Option(help="Which documents are drawn.")]
KindOption = Annotated[Kind | None, typer.Option(help="What is asked of a rendered document.", show_default="a mix")]
SourceOption = Annotated[
    str, typer.Option(help='"rendered", a folder of images, a PDF, a JSONL file, or a Hugging Face dataset.')
]
DEFAULT_MODEL = Path("reader-w4")
RECOMMENDED = "the model's"
SCORES = ("exact_match", "cer", "anls", "tokens_per_second")


@app.callback(invoke_without_command=True)
def runtime(context: typer.Context) -> None:
    """Run an exported model folder: answer questions about documents, score it, compare it with its FP16 baseline."""
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="What to ask.")] = "Read the text.",
    image: Annotated[list[Path] | None, typer.Option(help="Picture to ask about; repeat for several.")] = None,
    video: Annotated[
        list[Path] | None, typer.Option(help="Video file, or folder of frames, to ask about; repeat for several.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames read of a second of a video file.", show_default=f"{RECOMMENDED}, or 2")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", show_default=RECOMMENDED)] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Nucleus of the likeliest tokens.", show_default=RECOMMENDED)
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest; 0 is off.", show_default=RECOMMENDED)] = None,
    presence_penalty: Annotated[
        float | None,
        typer.Option(help="Taken from logits of tokens already used.", show_default=f"{RECOMMENDED}; 0 when greedy"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.", show_default="a fresh one")] = None,
    thinking: Annotated[bool, typer.Option("--thinking/--no-thinking", help="Reason before answering.")] = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Answer a question about images and videos, streaming the text; reasoning first, up to a line </think>."""
    pictures = [open_image(path) for path in image or []]
    videos = [open_video(path, fps) for path in video or []]
    if fps is not None and not videos:
        raise InputError(f"--fps {fps}: is of a video, give one with --video")
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "presence_penalty": presence_penalty}
    chosen = {name: value for name, value in given.items() if value is not None}
    Sampling(seed=seed, **chosen)  # type: ignore[arg-type]  # wrong values are found before a long load
    start = time.perf_counter()
    loaded = Model(model, device)
    sampler = Sampling.recommended(loaded.generation, chosen, seed).sampler()
    asked = time.perf_counter()
    names = [str(path) for path in image or []]
    question = loaded.prompt(prompt, pictures, videos, names=names, thinking=thinking)
    tokens = loaded.generate(question, sampler, max_new_tokens)
    if as_json:
        result = {"model": str(model), "load_seconds": asked - start, "prompt_tokens": len(question.ids)}
        _print_json(result | _answer(loaded.chat, tokens, thinking, asked))
        return
    text = loaded.chat.stream_answer(thinking=thinking)
    for token in tokens:
        sys.stdout.write(text.push(token))
        sys.stdout.flush()
    sys.stdout.write(text.finish() + "\n")


def _answer(chat: Chat, stream: Iterator[int], thinking: bool, asked: float) -> dict[str, Any]:
    """A whole answer, and how fast it came: the first token since it was asked, the others since the first."""
    tokens, times = [], [asked]
    for token in stream:
        tokens.append(token)
        times.append(time.perf_counter())
    answer = chat.decode_answer(tokens, thinking=thinking)
    return {
        "text": answer.text,
        "reasoning": answer.reasoning,
        "tokens": tokens,
        "first_token_seconds": times[1] - asked if tokens else None,
        "tokens_per_second": (len(tokens) - 1) / (times[-1] - times[1]) if len(tokens) > 1 else None,
    }


@app.command()
def evaluate(
    model: ModelOption = DEFAULT_MODEL,
    documents: DocumentsOption = 50,
    seed: SeedOption = 0,
    kind: KindOption = None,
    source: SourceOption = "rendered",
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Score one folder's greedy answers on freshly drawn evaluation documents."""
    drawn = evaluating.with_answers(open_documents(source, split="evaluation", count=documents, seed=seed, kind=kind))
    loaded = Model(model, device)
    scored = [evaluating.score(loaded, document)[0] for document in track(drawn, "evaluating")]
    result = {"model": str(model), "source": source, "kind": kind, "seed": seed, **evaluating.summary(scored)}
    if as_json:
        _print_json(result)
        return
    table = Table(title=f"{model} on {len(drawn)} documents", show_header=False)
    for name in SCORES:
        table.add_row(name, f"{result[name]:.4f}")
    Console().print(table)


@app.command()
def compare(
    baseline: Annotated[Path, typer.Option(help="Exported folder of the unquantized model.")],
    model: ModelOption = DEFAULT_MODEL,
    documents: DocumentsOption = 50,
    seed: SeedOption = 0,
    kind: KindOption = None,
    source: SourceOption = "rendered",
    max_drop: Annotated[float, typer.Option(min=0, help="Largest loss of ANLS that passes.")] = 0.02,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Score a folder and its FP16 baseline on the same documents; exit 1 when ANLS drops by more than --max-drop."""
    drawn = evaluating.with_answers(open_documents(source, split="evaluation", count=documents, seed=seed, kind=kind))
    models = Model(baseline, device), Model(model, device)
    comparing.require_same_tokens(*models)
    compared = [comparing.compare(*models, document) for document in track(drawn, "comparing")]
    result = {"model": str(model), "baseline_model": str(baseline), "source": source, "kind": kind, "seed": seed}
    result |= comparing.comparison(compared, max_drop)
    if as_json:
        _print_json(result)
    else:
        _print_comparison(result)
    if not result["passed"]:
        raise typer.Exit(1)


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def _print_comparison(result: dict[str, Any]) -> None:
    table = Table("", "baseline", "candidate", title=f"{result['model']} against {result['baseline_model']}")
    for name in SCORES:
        table.add_row(name, f"{result['baseline'][name]:.4f}", f"{result['candidate'][name]:.4f}")
    console = Console()
    console.print(table)
    console.print(
        f"{result['documents']} documents, {result['answers_changed']} answers changed; "
        f"mean KL {result['mean_kl']:.5f} nats, token agreement {result['token_agreement']:.4f}"
    )
    verdict = "passes" if result["passed"] else "FAILS"
    console.print(f"ANLS drop {result['anls_drop']:.4f}, allowed {result['max_drop']}: {verdict}")


if __name__ == "__main__":
    run_command(app)
