"""Options of `python -m runtime`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from calib_data.document import READ_TEXT
from calib_data.rendered.render import Kind
from runtime.answer import AUTO, MAX_DRAFT_TOKENS

DEFAULT_MODEL = Path("reader-w4")
_RECOMMENDED = "the model's"
_SOURCES = (
    '"rendered", "rendered:KIND", a folder of images, a PDF, a JSONL file, or a Hugging Face dataset (owner/name, or '
    "owner/name:split)."
)

# Several commands.
Model = Annotated[Path, typer.Option(help="Exported model folder.")]
Device = Annotated[
    str, typer.Option(help='"cpu", "cuda" or "cuda:1"; the folder must be exported for it.', metavar="DEVICE")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Count = Annotated[int, typer.Option(min=1, help="Number of documents.")]
Seed = Annotated[int, typer.Option(help="Seed that chooses the documents.")]
DocumentKind = Annotated[
    Kind | None, typer.Option("--kind", help="Kind of question about rendered documents.", show_default="a mix")
]
Documents = Annotated[str, typer.Option(help=_SOURCES)]

# generate
Prompt = Annotated[str | None, typer.Option(help="Question.", show_default=READ_TEXT)]
Image = Annotated[list[Path] | None, typer.Option(help="Image, or PDF with all its pages; repeat for several.")]
Video = Annotated[list[Path] | None, typer.Option(help="Video file, or folder of frames; repeat for several.")]
Fps = Annotated[
    float | None,
    typer.Option(help="Frames a second that are read from a video file.", show_default=f"{_RECOMMENDED}, or 2"),
]
Input = Annotated[
    Path | None,
    typer.Option("--input", help='JSONL file of {"image", "prompt"}; prints one JSON object for each line.'),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[
    float | None, typer.Option(help="Sampling temperature; 0 is greedy.", show_default=_RECOMMENDED)
]
TopP = Annotated[float | None, typer.Option(help="Nucleus sampling probability.", show_default=_RECOMMENDED)]
TopK = Annotated[
    int | None, typer.Option(help="Sample from the k likeliest tokens; 0 is off.", show_default=_RECOMMENDED)
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(help="Subtracted from the logits of generated tokens.", show_default=f"{_RECOMMENDED}; 0 when greedy"),
]
SamplingSeed = Annotated[int | None, typer.Option(help="Seed of the sampling.", show_default="random")]
Thinking = Annotated[bool, typer.Option("--thinking/--no-thinking", help="Reason before answering.")]
ThinkingBudget = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Longest reasoning, in tokens; then the answer begins. 0 answers at once. Needs --thinking.",
        show_default="no limit",
    ),
]
DraftTokens = Annotated[
    str,
    typer.Option(
        metavar=f"{AUTO}|0..{MAX_DRAFT_TOKENS}",
        help="Draft tokens ahead of each decoder call; 0 is off. auto drafts where it measures a speedup, and never "
        "with a seed. Drafts may change near ties.",
    ),
]
MemoryLimit = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        max=10_000,
        help="CUDA: GiB for the weights and activations of a graph, without the KV cache.",
        show_default="all",
    ),
]
CudaGraph = Annotated[
    bool, typer.Option("--cuda-graph", help="CUDA: replay decode steps as CUDA graphs. Not yet tested on a GPU.")
]

# batch
BatchInput = Annotated[
    str,
    typer.Option(
        "--input",
        help="Folder of images and PDFs, with those below it; JSONL file; Parquet file or folder. A path or a URL.",
    ),
]
BatchOutput = Annotated[
    str,
    typer.Option("--output", help="Folder for the answers, a path or a URL; the same command resumes a stopped run."),
]
BatchModel = Annotated[str, typer.Option("--model", help="Exported model folder, a path or a URL.")]
BatchPrompt = Annotated[
    str | None, typer.Option("--prompt", help="Question about each page without its own.", show_default=READ_TEXT)
]
Schema = Annotated[
    Path | None,
    typer.Option(
        help="File with the JSON schema of every answer; each property becomes a column.", show_default="text"
    ),
]
Per = Annotated[Literal["page", "document"], typer.Option(help="What a row is: a page of a PDF, or the whole PDF.")]
Form = Annotated[Literal["parquet", "jsonl"], typer.Option("--format", help="Form of the output files.")]
Address = Annotated[
    str | None,
    typer.Option(help='Ray cluster: "auto" on one of its nodes, or "HOST:PORT".', show_default="this machine"),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Number of workers; each takes a GPU, or --threads cores.", show_default="all that fit"),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads of a worker.", show_default="all cores of a machine; 1 next to a GPU"),
]
RetryErrors = Annotated[
    bool,
    typer.Option("--retry-errors", help="Answer pages that had an error again; more --max-new-tokens may be given."),
]
Report = Annotated[Path | None, typer.Option(help="File for an HTML page with counts, errors and filled fields.")]

# compare
Baseline = Annotated[
    Path, typer.Option(help="Exported folder of the unquantized model, or the reference.npz that quantize wrote.")
]
Candidates = Annotated[list[Path], typer.Option("--model", help="Exported folder to judge; repeat for several.")]
ComparedCount = Annotated[
    int | None, typer.Option("--count", min=1, help="Number of documents.", show_default="50, or all of a reference")
]
ComparedDocuments = Annotated[
    str,
    typer.Option("--documents", help=f"{_SOURCES} With a reference.npz: where its documents are now, if they moved."),
]
Output = Annotated[
    Path | None,
    typer.Option(help="Folder for compare.json and report.html; the same command resumes a stopped comparison."),
]
MaxDropAnls = Annotated[float, typer.Option(min=0, help="Largest drop of ANLS that passes.")]
MaxUnfinished = Annotated[
    float,
    typer.Option(min=0, max=1, help="Largest share of answers without an end, of those that end with the baseline."),
]
MaxKl = Annotated[
    float | None,
    typer.Option(min=0, help="Largest mean KL divergence that passes, in nats a token.", show_default="any"),
]
MinAgreement = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Smallest share of tokens with the same top prediction.", show_default="any"),
]
Junit = Annotated[Path | None, typer.Option(help="File for the gates as JUnit XML.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes; each loads all models.")]

# serve
Host = Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all networks.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any that is free.")]
ServedModelName = Annotated[
    str | None, typer.Option(help="Name of the model for clients.", show_default="the folder's name")
]
MaxRows = Annotated[
    int | None, typer.Option(min=1, help="Answers that are generated at the same time.", show_default="what fits")
]
MaxContext = Annotated[
    int | None, typer.Option(min=2, help="Longest prompt with its answer, in tokens.", show_default="what fits")
]
MaxQueue = Annotated[int, typer.Option(min=0, help="Answers that may wait for a row; then requests get 429.")]
MaxRequestSeconds = Annotated[float, typer.Option(min=0.1, help="Longest time from a request to its whole answer.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="EXAONE_DOCVLM_API_KEY",
        help="Key that requests must have. Better set the variable: other users see options in the process list.",
        show_default="none",
    ),
]
AllowMediaDomains = Annotated[
    list[str] | None, typer.Option(help="Domain that images may be fetched from; repeat for several.")
]
AllowOrigin = Annotated[
    list[str] | None, typer.Option(help="Origin of web pages that may use the server (CORS); repeat for several.")
]
LogPrompts = Annotated[bool, typer.Option("--log-prompts", help="Write prompts to the log.")]
DrainSeconds = Annotated[float, typer.Option(min=0, help="Time that running answers get after SIGTERM.")]
