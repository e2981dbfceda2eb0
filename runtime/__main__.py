"""`python -m runtime`: generate, evaluate, compare and serve exported folders."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from calib_data.document import READ_TEXT
from console.errors import InputError, require_package, run_command
from console.files import read_object
from console.progress import track
from runtime import evaluate as evaluation
from runtime import options as option
from runtime.answer import (
    AUTO,
    MAX_NEW_TOKENS,
    answer_settings,
    choose_draft_tokens,
    parse_draft_tokens,
    refuse_captured_drafts,
)
from runtime.compare.command import RENDERED, DocumentChoice, compare_folders
from runtime.compare.gate import Gates
from runtime.compare.measuring.models import Models
from runtime.compare.report.screen import print_comparison
from runtime.generate_command import GenerateCommand, print_json
from runtime.model import Model
from runtime.ort.sessions import session_options
from runtime.prompt import open_prompt_inputs, refuse_unused_fps

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer(add_completion=False)
RENAMED = {"--source": "--documents", "--documents N": "--count"}


@app.callback(invoke_without_command=True)
def runtime(context: typer.Context) -> None:
    """Run an exported model folder: answer questions about documents, score it, compare it with its FP16 baseline."""
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


@app.command()
def generate(
    prompt: option.Prompt = None,
    image: option.Image = None,
    video: option.Video = None,
    fps: option.Fps = None,
    questions: option.Input = None,
    model: option.Model = option.DEFAULT_MODEL,
    max_new_tokens: option.MaxNewTokens = MAX_NEW_TOKENS,
    temperature: option.Temperature = None,
    top_p: option.TopP = None,
    top_k: option.TopK = None,
    presence_penalty: option.PresencePenalty = None,
    seed: option.SamplingSeed = None,
    thinking: option.Thinking = False,
    thinking_budget: option.ThinkingBudget = None,
    draft_tokens: option.DraftTokens = AUTO,
    device: option.Device = "cpu",
    memory_limit: option.MemoryLimit = None,
    cuda_graph: option.CudaGraph = False,
    as_json: option.Json = False,
) -> None:
    """Answer a question about images and videos; the text is printed as it comes, reasoning first."""
    refuse_unused_fps(fps, video or [])
    _require_question(prompt, image, video, questions)
    refuse_captured_drafts(parse_draft_tokens(draft_tokens), cuda_graph)
    loaded = Model(model, device, session_options(device, memory_limit=memory_limit, cuda_graph=cuda_graph))
    settings = answer_settings(
        loaded,
        loaded.draft_policy,
        {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "presence_penalty": presence_penalty,
            "seed": seed,
            "thinking": thinking,
            "thinking_budget": thinking_budget,
            "draft_tokens": draft_tokens,
        },
    )
    command = GenerateCommand(loaded, settings)
    if questions is not None:
        for answer in command.answer_lines(questions):
            print_json(answer)
        return
    question = READ_TEXT if prompt is None else prompt
    inputs = open_prompt_inputs(loaded, question, image or [], video or [], fps=fps, thinking=settings.thinking)
    load_seconds = command.open_sessions()
    if as_json:
        print_json(command.to_json(inputs, load_seconds))
    else:
        command.print_text(inputs)


def _require_question(
    prompt: str | None, image: list[Path] | None, video: list[Path] | None, questions: Path | None
) -> None:
    if questions is not None and (prompt is not None or image or video):
        raise InputError(f"--input {questions}: its lines are the questions; leave out --prompt, --image and --video")
    if questions is None and prompt is None and not image and not video:
        raise InputError("nothing to answer: give --image or --video to read, or a --prompt, or --input")


@app.command()
def evaluate(
    model: option.Model = option.DEFAULT_MODEL,
    count: option.Count = 50,
    seed: option.Seed = 0,
    kind: option.DocumentKind = None,
    documents: option.Documents = RENDERED,
    device: option.Device = "cpu",
    as_json: option.Json = False,
) -> None:
    """Score one folder's greedy answers on documents that were held out from calibration."""
    opened = evaluation.evaluation_documents(documents, count, seed, kind)
    loaded = Model(model, device)
    evaluation.require_vision(loaded)
    evaluation.say_without_effect(loaded)
    loaded.open_sessions()  # so that the time is without it
    start = time.perf_counter()
    scored = list(track(evaluation.score_all(loaded, opened), "evaluating", len(opened)))
    scores = evaluation.summary(scored, time.perf_counter() - start)
    result = {"model": str(model), "source": documents, "kind": kind, "seed": seed, **scores}
    if as_json:
        print_json(result)
        return
    table = Table(title=f"{model} on {len(opened)} documents", show_header=False)
    for name in (*evaluation.SCORES, "tokens_per_second"):
        table.add_row(name, f"{result[name]:.4f}")
    Console(markup=False).print(table)


@app.command()
def compare(
    baseline: option.Baseline,
    model: option.Candidates = [option.DEFAULT_MODEL],  # noqa: B006
    count: option.ComparedCount = None,
    seed: option.Seed = 0,
    kind: option.DocumentKind = None,
    documents: option.ComparedDocuments = RENDERED,
    output: option.Output = None,
    max_drop_anls: option.MaxDropAnls = 0.02,
    max_unfinished: option.MaxUnfinished = 0.02,
    max_kl: option.MaxKl = None,
    min_agreement: option.MinAgreement = None,
    junit: option.Junit = None,
    jobs: option.Jobs = 1,
    device: option.Device = "cpu",
    as_json: option.Json = False,
) -> None:
    """Compare folders with their FP16 baseline on the same documents; exit code 1 unless all pass their gates."""
    models = Models(baseline, tuple(model), device, None if documents == RENDERED else documents)
    gates = Gates(max_kl, max_drop_anls, min_agreement, max_unfinished)
    choice = DocumentChoice(documents, count, seed, kind)
    compared = compare_folders(models, choice, gates, output=output, junit=junit, jobs=jobs)
    if as_json:
        print_json({name: value for name, value in compared.content.items() if name != "documents"})
    else:
        print_comparison(compared.result, Console(markup=False))
        if compared.report:
            sys.stdout.write(f"report: {compared.report}\n")
    if not compared.result.passed:
        raise typer.Exit(1)


@app.command()
def serve(
    model: option.Model = option.DEFAULT_MODEL,
    host: option.Host = "127.0.0.1",
    port: option.Port = 8000,
    served_model_name: option.ServedModelName = None,
    max_rows: option.MaxRows = None,
    max_context: option.MaxContext = None,
    max_queue: option.MaxQueue = 64,
    max_request_seconds: option.MaxRequestSeconds = 600,
    api_key: option.ApiKey = None,
    allow_media_domains: option.AllowMediaDomains = None,
    allow_origin: option.AllowOrigin = None,
    log_prompts: option.LogPrompts = False,
    draft_tokens: option.DraftTokens = AUTO,
    drain_seconds: option.DrainSeconds = 30,
    device: option.Device = "cpu",
    memory_limit: option.MemoryLimit = None,
) -> None:
    """Answer many requests over HTTP, with OpenAI's API. SIGTERM finishes running answers; exit code 0 if all were."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        require_package(package, "serve", "python -m runtime serve")
    from runtime.serve import app as application
    from runtime.serve import command, media, service  # their packages are in an extra

    loaded = Model(model, device, session_options(device, memory_limit=memory_limit))
    code = command.serve(
        loaded,
        command.ServeSettings(
            host,
            port,
            served_model_name,
            choose_draft_tokens(loaded, loaded.draft_policy, draft_tokens),
            drain_seconds,
            service.ServiceLimits(max_rows, max_context, max_queue, max_request_seconds),
            application.AppSettings(api_key, tuple(allow_origin or ()), log_prompts),
            media.Media(domains=tuple(allow_media_domains or ())),
        ),
    )
    if code:
        raise typer.Exit(code)


@app.command()
def batch(
    source: option.BatchInput,
    output: option.BatchOutput,
    model: option.BatchModel = str(option.DEFAULT_MODEL),
    prompt: option.BatchPrompt = None,
    schema: option.Schema = None,
    per: option.Per = "page",
    form: option.Form = "parquet",
    max_new_tokens: option.MaxNewTokens = MAX_NEW_TOKENS,
    temperature: option.Temperature = None,
    top_p: option.TopP = None,
    top_k: option.TopK = None,
    presence_penalty: option.PresencePenalty = None,
    seed: option.SamplingSeed = None,
    thinking: option.Thinking = False,
    thinking_budget: option.ThinkingBudget = None,
    device: option.Device = "cpu",
    address: option.Address = None,
    workers: option.Workers = None,
    threads: option.Threads = None,
    max_rows: option.MaxRows = None,
    max_context: option.MaxContext = None,
    memory_limit: option.MemoryLimit = None,
    retry_errors: option.RetryErrors = False,
    report: option.Report = None,
    as_json: option.Json = False,
) -> None:
    """Answer a question about many pages, on all GPUs of this machine or of a Ray cluster; resumes a stopped run."""
    for package in ("ray", "pyarrow"):
        require_package(package, "batch", "python -m runtime batch")
    from runtime.batch.command import run_batch  # its packages are in an extra
    from runtime.batch.job import Job
    from runtime.batch.output.screen import print_summary
    from runtime.batch.source.open import open_source
    from runtime.batch.storage import Storage

    job = Job(
        model=Storage.at(model),
        source=open_source(Storage.at(source), prompt, per_document=per == "document"),
        output=Storage.at(output),
        schema=None if schema is None else read_object(schema, "give a file with a JSON schema"),
        options={
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "presence_penalty": presence_penalty,
            "seed": seed,
            "thinking": thinking,
            "thinking_budget": thinking_budget,
        },
        form=form,
        device=device,
        threads=threads,
        memory_limit=memory_limit,
        max_rows=max_rows,
        max_context=max_context,
        retry_errors=retry_errors,
    )
    summary = run_batch(job, address=address, workers=workers, report=report)
    if as_json:
        print_json(asdict(summary))
    else:
        print_summary(summary, Console(markup=False))


if __name__ == "__main__":
    run_command(app, RENAMED)
