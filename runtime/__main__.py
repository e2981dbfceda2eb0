"""`python -m runtime`: generate, evaluate and compare exported folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from calib_data.document import READ_TEXT
from calib_data.rendered.render import Kind
from calib_data.sources import open_pictures
from console.errors import InputError, run_command
from console.progress import say, track
from runtime import evaluate as evaluating
from runtime.answer import Answers
from runtime.compare.baseline import Baseline, ReferenceBaseline
from runtime.compare.gate import Gates
from runtime.compare.measure import measure_all
from runtime.compare.models import Models
from runtime.compare.progress import Progress
from runtime.compare.provenance import provenance, resume_settings
from runtime.compare.report.junit import write_junit
from runtime.compare.report.page import check_matplotlib, write_report
from runtime.compare.report.screen import print_comparison
from runtime.compare.summary import summarize
from runtime.draft_policy import DraftPolicy
from runtime.generate import Model
from runtime.inputs.video import left_out, open_video
from runtime.ort.sessions import Device, Options
from runtime.sampling import Sampling

if TYPE_CHECKING:
    from calib_data.document import Document
    from runtime.compare.result import Comparison, DocumentResult
    from runtime.generate import Question

app = typer.Typer(add_completion=False)

RECOMMENDED = "the model's"
SOURCES = (
    '"rendered", a folder of images, a PDF, a JSONL file, or a Hugging Face dataset (owner/name, or owner/name:split).'
)
DEFAULT_MODEL = Path("reader-w4")
AUTO, MOST_DRAFTS = "auto", 8

# Of several commands.
ModelOption = Annotated[Path, typer.Option(help="Exported model folder.")]
DeviceOption = Annotated[
    str, typer.Option(help='"cpu", "cuda" or "cuda:1"; the folder must be exported for it.', metavar="DEVICE")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
CountOption = Annotated[int, typer.Option(min=1, help="How many documents.")]
SeedOption = Annotated[int, typer.Option(help="Which documents are drawn.")]
KindOption = Annotated[Kind | None, typer.Option(help="What is asked of a rendered document.", show_default="a mix")]
DocumentsOption = Annotated[str, typer.Option(help=SOURCES)]

# Of `generate`.
PromptOption = Annotated[str | None, typer.Option(help="What to ask.", show_default=READ_TEXT)]
ImageOption = Annotated[
    list[Path] | None, typer.Option(help="Picture, or PDF with all its pages, to ask about; repeat for several.")
]
VideoOption = Annotated[
    list[Path] | None, typer.Option(help="Video file, or folder of frames, to ask about; repeat for several.")
]
FpsOption = Annotated[
    float | None, typer.Option(help="Frames read of a second of a video file.", show_default=f"{RECOMMENDED}, or 2")
]
InputOption = Annotated[
    Path | None,
    typer.Option("--input", help='JSONL file of {"image", "prompt"}: prints a JSON object for each line instead.'),
]
LengthOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
TemperatureOption = Annotated[float | None, typer.Option(help="0 is greedy.", show_default=RECOMMENDED)]
TopPOption = Annotated[float | None, typer.Option(help="Nucleus of the likeliest tokens.", show_default=RECOMMENDED)]
TopKOption = Annotated[int | None, typer.Option(help="Only the k likeliest; 0 is off.", show_default=RECOMMENDED)]
PenaltyOption = Annotated[
    float | None,
    typer.Option(help="Taken from logits of tokens already used.", show_default=f"{RECOMMENDED}; 0 when greedy"),
]
SamplingSeedOption = Annotated[int | None, typer.Option(help="Of the sampling.", show_default="a fresh one")]
ThinkingOption = Annotated[bool, typer.Option("--thinking/--no-thinking", help="Reason before answering.")]
DraftsOption = Annotated[
    str,
    typer.Option(
        metavar="auto|0..8",
        help="Tokens that the MTP layer drafts ahead of each call of the decoder; 0 for none. auto times calls as they "
        "come and drafts where that gives more tokens a second; with --seed it drafts nothing. Drafts may decide near "
        "ties otherwise.",
    ),
]
MemoryOption = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        max=10_000,
        help="CUDA: GiB that the weights and activations of a graph may take, beside the KV cache.",
        show_default="all",
    ),
]
CaptureOption = Annotated[
    bool, typer.Option("--cuda-graph", help="CUDA: replay decode steps as CUDA graphs. Not yet tried on a card.")
]

# Of `compare`.
BaselineOption = Annotated[
    Path, typer.Option(help="Exported folder of the unquantized model, or the reference.npz that quantize kept.")
]
CandidatesOption = Annotated[list[Path], typer.Option(help="Exported folder to judge; repeat for several.")]
ComparedCountOption = Annotated[
    int | None, typer.Option(min=1, help="How many documents.", show_default="50, or all of a reference")
]
ComparedDocumentsOption = Annotated[
    str, typer.Option(help=f"{SOURCES} Of a reference.npz: where its documents lie now, if not where they were.")
]
OutputOption = Annotated[
    Path | None, typer.Option(help="Folder for compare.json and report.html; a stopped comparison goes on there.")
]
MaxDropOption = Annotated[float, typer.Option(min=0, help="Largest loss of ANLS that passes.")]
MaxKlOption = Annotated[
    float | None, typer.Option(min=0, help="Largest mean KL that passes, in nats a token.", show_default="any")
]
MinAgreementOption = Annotated[
    float | None, typer.Option(min=0, max=1, help="Least share of tokens that both find likeliest.", show_default="any")
]
JunitOption = Annotated[Path | None, typer.Option(help="Write the gates as JUnit XML.")]
JobsOption = Annotated[int, typer.Option(min=1, help="Documents at a time, each in a process with models of its own.")]


@app.callback(invoke_without_command=True)
def runtime(context: typer.Context) -> None:
    """Run an exported model folder: answer questions about documents, score it, compare it with its FP16 baseline."""
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


@app.command()
def generate(
    prompt: PromptOption = None,
    image: ImageOption = None,
    video: VideoOption = None,
    fps: FpsOption = None,
    questions: InputOption = None,
    model: ModelOption = DEFAULT_MODEL,
    max_new_tokens: LengthOption = 512,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    presence_penalty: PenaltyOption = None,
    seed: SamplingSeedOption = None,
    thinking: ThinkingOption = False,
    draft_tokens: DraftsOption = AUTO,
    device: DeviceOption = "cpu",
    memory_limit: MemoryOption = None,
    cuda_graph: CaptureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about images and videos, streaming the text; reasoning first, up to a line </think>."""
    _require_question(prompt, image, video, fps, questions)
    wanted = _draft_tokens(draft_tokens)
    loaded = Model(model, device, _options(device, memory_limit, cuda_graph, wanted))
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "presence_penalty": presence_penalty}
    drafting = _drafting(loaded, wanted, seed)
    answers = Answers(loaded, _sampling(loaded, given, seed), max_new_tokens, thinking, drafting)
    if questions is not None:
        for answer in answers.of_lines(questions):
            _print_json(answer)
        return
    question = _question(loaded, prompt, image or [], video or [], fps, thinking)
    seconds = answers.load()
    if as_json:
        _print_json(answers.to_json(question, seconds))
    else:
        answers.stream(question)


def _require_question(
    prompt: str | None, image: list[Path] | None, video: list[Path] | None, fps: float | None, questions: Path | None
) -> None:
    if questions is not None and (prompt is not None or image or video):
        raise InputError(f"--input {questions}: its lines are the questions; leave out --prompt, --image and --video")
    if fps is not None and not video:
        raise InputError(f"--fps {fps}: is of a video, give one with --video")
    if prompt is not None and not prompt.strip():
        raise InputError("--prompt: is empty; write a question, or leave it out to have a picture read")
    if questions is None and prompt is None and not image and not video:
        raise InputError("nothing to answer: give --image or --video to read, or a --prompt, or --input")


def _question(
    model: Model, prompt: str | None, image: list[Path], video: list[Path], fps: float | None, thinking: bool
) -> Question:
    pictures = [picture for path in image for picture in open_pictures(path)]
    videos = [open_video(path, fps) for path in video]
    names, images = [name for name, _ in pictures], [picture for _, picture in pictures]
    question = model.question(READ_TEXT if prompt is None else prompt, images, videos, names=names, thinking=thinking)
    for opened in videos:
        if note := left_out(opened, model.video_settings):
            say(note)
    return question


def _sampling(model: Model, given: dict[str, float | None], seed: int | None) -> Sampling:
    """What was asked for, and for the rest what the model recommends."""
    chosen = {name: value for name, value in given.items() if value is not None}
    Sampling(seed=seed, **chosen)  # type: ignore[arg-type]  # or the model's file would be blamed for a wrong option
    return Sampling.recommended(model.generation, chosen, seed)


def _draft_tokens(text: str) -> int | None:
    """Read --draft-tokens; None is auto."""
    if text == AUTO:
        return None
    if text not in [str(number) for number in range(MOST_DRAFTS + 1)]:
        raise InputError(f"--draft-tokens {text}: write {AUTO}, or a number from 0 to {MOST_DRAFTS}")
    return int(text)


def _drafting(model: Model, wanted: int | None, seed: int | None) -> int | DraftPolicy:
    """How many tokens to draft. Nothing by itself without an MTP layer, nor where single steps are replayed.

    Nor with a seed: what a policy chooses depends on time, and a seed is given to see the same answer again.
    """
    if wanted is not None:
        return wanted
    return 0 if model.target.mtp is None or model.options.capture or seed is not None else DraftPolicy()


def _options(device: str, memory_limit: float | None, cuda_graph: bool, draft_tokens: int | None) -> Options:
    if cuda_graph and draft_tokens:
        raise InputError("--cuda-graph, --draft-tokens: drafts take no single steps that could be replayed; give one")
    if Device.parse(device).kind == "cpu" and (memory_limit is not None or cuda_graph):
        option = "--cuda-graph" if memory_limit is None else "--memory-limit"
        raise InputError(f"{option}: is for a card; give --device cuda too")
    return Options(memory_limit=None if memory_limit is None else int(memory_limit * 2**30), capture=cuda_graph)


@app.command()
def evaluate(
    model: ModelOption = DEFAULT_MODEL,
    count: CountOption = 50,
    seed: SeedOption = 0,
    kind: KindOption = None,
    documents: DocumentsOption = "rendered",
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Score one folder's greedy answers on freshly drawn evaluation documents."""
    drawn = evaluating.draw(documents, count, seed, kind)
    loaded = Model(model, device)
    evaluating.require_vision(loaded)
    loaded.load()  # not in the time of the first document
    scored = [evaluating.score(loaded, document)[0] for document in track(drawn, "evaluating")]
    result = {"model": str(model), "source": documents, "kind": kind, "seed": seed, **evaluating.summary(scored)}
    if as_json:
        _print_json(result)
        return
    table = Table(title=f"{model} on {len(drawn)} documents", show_header=False)
    for name in (*evaluating.SCORES, "tokens_per_second"):
        table.add_row(name, f"{result[name]:.4f}")
    Console(markup=False).print(table)


@app.command()
def compare(
    baseline: BaselineOption,
    model: CandidatesOption = [DEFAULT_MODEL],  # noqa: B006
    count: ComparedCountOption = None,
    seed: SeedOption = 0,
    kind: KindOption = None,
    documents: ComparedDocumentsOption = "rendered",
    output: OutputOption = None,
    max_drop_anls: MaxDropOption = 0.02,
    max_kl: MaxKlOption = None,
    min_agreement: MinAgreementOption = None,
    junit: JunitOption = None,
    jobs: JobsOption = 1,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Compare folders with their FP16 baseline on the same documents; exit 1 unless every one passes its gates."""
    if output:
        check_matplotlib()
    if junit and not junit.absolute().parent.is_dir():
        raise InputError(f"--junit {junit}: there is no folder {junit.absolute().parent}; make it first")
    if junit and junit.is_dir():
        raise InputError(f"--junit {junit}: is a folder; name a file in it")
    models = Models(baseline, tuple(model), device, None if documents == "rendered" else documents)
    gates = Gates(max_kl=max_kl, max_drop_anls=max_drop_anls, min_agreement=min_agreement)
    loaded = models.load()
    drawn, about = _compared_documents(loaded.baseline, count, documents, seed, kind)
    about["device"] = device
    with Progress(output, resume_settings(models, about)) as progress:
        measured = measure_all(models, loaded, drawn, progress, jobs)
        result = summarize(models, loaded, measured, gates, about | provenance(loaded))
        if output:
            progress.check_unchanged(drawn)  # the report shows them
        _hand_out(result, measured, drawn, output, junit, as_json)
    if not result.passed:
        raise typer.Exit(1)


def _hand_out(
    result: Comparison,
    measured: list[DocumentResult],
    documents: list[Document],
    output: Path | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Write compare.json, report.html and JUnit XML where they are asked for, and print the result."""
    content = result.to_json(measured)
    if output:
        partial = output / "compare.json.partial"
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # as in `Progress.add`
        partial.replace(output / "compare.json")
        report = write_report(result, measured, documents, output)
    if junit:
        write_junit(result, junit)
    if as_json:
        _print_json({name: value for name, value in content.items() if name != "documents"})
        return
    print_comparison(result, Console(markup=False))
    if output:
        sys.stdout.write(f"report: {report}\n")


def _compared_documents(
    baseline: Baseline, count: int | None, source: str, seed: int, kind: Kind | None
) -> tuple[list[Document], dict[str, Any]]:
    """The documents of a comparison, and how they were chosen."""
    if isinstance(baseline, ReferenceBaseline):
        if (seed, kind) != (0, None):
            raise InputError("--seed, --kind: a reference has documents of its own; leave these out")
        drawn = baseline.documents[:count]
        return drawn, {"source": str(baseline.path), "kind": None, "seed": None, "count": len(drawn)}
    drawn = evaluating.draw(source, count or 50, seed, kind)
    return drawn, {"source": source, "kind": kind, "seed": seed, "count": len(drawn)}


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()  # of several answers, each when it is ready


if __name__ == "__main__":
    run_command(app)
