"""`python -m runtime`: generate, evaluate and compare exported folders."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from calib_data.errors import run_command
from calib_data.images import open_image
from calib_data.progress import track
from calib_data.render import Kind
from calib_data.sources import open_documents
from runtime import compare as comparing
from runtime import evaluate as evaluating
from runtime.generate import Model
from runtime.sampling import Sampling
from runtime.sessions import Device

app = typer.Typer(add_completion=False, no_args_is_help=True)

ModelOption = Annotated[Path, typer.Option(help="Exported model folder.")]
DeviceOption = Annotated[Device, typer.Option(help="Where to run; the folder must be exported for it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DocumentsOption = Annotated[int, typer.Option(min=1, help="How many documents.")]
SeedOption = Annotated[int, typer.Option(help="Which documents are drawn.")]
KindOption = Annotated[Kind | None, typer.Option(help="What is asked of a document.  [default: a mix]")]
SourceOption = Annotated[
    str, typer.Option(help='"rendered", a folder of images, a PDF, a JSONL file, or a Hugging Face dataset.')
]
DEFAULT_MODEL = Path("reader-w4")


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="What to ask.")] = "Read the text.",
    image: Annotated[list[Path] | None, typer.Option(help="Picture to ask about; repeat for several.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.  [default: the model's]")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Nucleus of the likeliest tokens.  [default: the model's]")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest; 0 is off.  [default: the model's]")] = None,
    presence_penalty: Annotated[
        float | None, typer.Option(help="Taken from logits of tokens already used.  [default: the model's]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.  [default: a fresh one]")] = None,
    thinking: Annotated[bool, typer.Option("--thinking/--no-thinking", help="Reason before answering.")] = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Answer a question about images, streaming the text."""
    pictures = [open_image(path) for path in image or []]
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "presence_penalty": presence_penalty}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    Sampling(seed=seed, **chosen)  # wrong values are found before a long load
    start = time.perf_counter()
    loaded = Model(folder=model, device=device)
    sampler = sampling(loaded.generation, chosen, seed).sampler()
    ready = time.perf_counter()
    question = loaded.prompt(prompt, pictures, thinking=thinking)
    stream, tokens, first = loaded.chat.stream(), [], None
    for token in loaded.generate(question, sampler, max_new_tokens):
        first = first or time.perf_counter()
        tokens.append(token)
        if not as_json:
            sys.stdout.write(stream.push(token))
            sys.stdout.flush()
    end = time.perf_counter()
    if not as_json:
        sys.stdout.write(stream.finish() + "\n")
        return
    answer = loaded.chat.decode_answer(tokens, thinking=thinking)
    decoding = end - (first or end)
    _print_json(
        {
            "text": answer.text,
            "reasoning": answer.reasoning,
            "tokens": tokens,
            "prompt_tokens": len(question.ids),
            "load_seconds": ready - start,
            "first_token_seconds": (first or end) - ready,
            "tokens_per_second": (len(tokens) - 1) / decoding if decoding and len(tokens) > 1 else None,
        }
    )


def sampling(generation: dict[str, Any], chosen: dict[str, Any], seed: int | None) -> Sampling:
    """What was chosen on the command line, and for the rest what generation_config.json recommends."""
    names = ("temperature", "top_p", "top_k", "presence_penalty")
    recommended = {name: generation[name] for name in names if generation.get(name) is not None}
    if not generation.get("do_sample", False):
        recommended["temperature"] = 0.0
    return Sampling(seed=seed, **{**recommended, **chosen})


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
    loaded = Model(model, device)
    drawn = open_documents(source, split="evaluation", count=documents, seed=seed, kind=kind)
    scored = [evaluating.score(loaded, document) for document in track(drawn, "evaluating")]
    result = {"model": str(model), "source": source, "kind": kind, "seed": seed, **evaluating.summary(scored)}
    if as_json:
        _print_json(result)
        return
    table = Table(title=f"{model} on {len(drawn)} documents")
    for name in ("exact_match", "cer", "anls", "tokens_per_second"):
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
    models = Model(baseline, device), Model(model, device)
    drawn = open_documents(source, split="evaluation", count=documents, seed=seed, kind=kind)
    compared = [comparing.compare(*models, document) for document in track(drawn, "comparing")]
    result = comparing.comparison(compared)
    drop = result["baseline"]["anls"] - result["candidate"]["anls"]
    passed = drop <= max_drop
    result |= {"model": str(model), "baseline_model": str(baseline), "source": source, "kind": kind, "seed": seed}
    result |= {"anls_drop": drop, "max_drop": max_drop, "passed": passed}
    if as_json:
        _print_json(result)
    else:
        _print_comparison(result)
    if not passed:
        raise typer.Exit(1)


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def _print_comparison(result: dict[str, Any]) -> None:
    table = Table("", "baseline", "candidate", title=f"{result['model']} against {result['baseline_model']}")
    for name in ("exact_match", "cer", "anls", "tokens_per_second"):
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
