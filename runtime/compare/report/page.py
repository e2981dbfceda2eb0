"""Writes report.html: a comparison as one page without other files or network access."""

from __future__ import annotations

import base64
import importlib.util
import io
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from PIL import Image

from calib_data.scores import visible
from console.errors import InputError
from runtime.compare.gate import baseline_warnings
from runtime.compare.report.diff import Piece, differences
from runtime.compare.report.stopping import TITLE, missing, stopping_groups
from runtime.compare.report.table import groups, short_names
from runtime.html.render import render_page, write_page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from calib_data.document import Document
    from runtime.compare.result import Candidate, Comparison, DocumentResult

FILE = "report.html"
WORST, MOST = 8, 12  # documents shown: with the largest KL, and together with others whose answer changed
_MAX_SIDE = 900  # pixels
_JPEG_QUALITY = 80


def check_matplotlib() -> None:
    """Raise InputError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--output: the report's plots need matplotlib; install the extra 'report', or drop --output")


@dataclass(frozen=True)
class Answer:
    """One model's answer, marked where it differs from another text."""

    name: str
    against: str
    """What it is marked against."""
    pieces: list[Piece]
    exact: bool
    """Whether it matches a true answer exactly."""
    kl: float | None
    """Mean KL divergence; None for the baseline."""
    number: int | None
    """Of the candidate; None for the baseline."""

    @property
    def same(self) -> bool:
        """Whether nothing is marked."""
        return all(piece.kind == "same" for piece in self.pieces)


@dataclass(frozen=True)
class DocumentView:
    """A document in the report."""

    name: str
    picture: str
    """A data URI."""
    size: tuple[int, int]
    """Width and height in pixels."""
    prompt: str
    truth: str
    answers: list[Answer]
    """The baseline's, if it has one, and the candidates'."""


def write_report(
    comparison: Comparison, results: Sequence[DocumentResult], documents: Sequence[Document], folder: Path
) -> Path:
    """Write report.html into a folder and return its path. documents: those of the results, in the same order."""
    path = folder / FILE
    write_page(render(comparison, results, documents), path)
    return path


def render(comparison: Comparison, results: Sequence[DocumentResult], documents: Sequence[Document]) -> str:
    """Render the page. The same comparison gives the same bytes."""
    from runtime.compare.report import plots

    candidates = comparison.candidates
    baseline_name, *names = short_names([comparison.baseline.model, *(candidate.model for candidate in candidates)])
    pairs = list(zip(results, documents, strict=True))
    return render_page(
        Path(__file__).parent,
        comparison=comparison,
        candidates=list(zip(names, candidates, strict=True)),
        baseline_name=baseline_name,
        signs=plots.SIGNS,
        headline=headline(names, comparison),
        outcome=overall_outcome(comparison),
        baseline_warnings=baseline_warnings(comparison.baseline.scores),
        graphs=["" if line is None else f": {line}" for line in comparison.metadata["graphs"]],
        documents_text=_describe_documents(comparison.metadata),
        provenance=_provenance(comparison.metadata),
        has_answers=comparison.baseline.scores is not None,
        has_weights=any(layer.error is not None for candidate in candidates for layer in candidate.layers),
        groups=groups(comparison),
        stopping_title=TITLE,
        stopping_groups=stopping_groups(comparison),
        missing=missing(comparison),
        plots=_plots(names, comparison, results),
        suspects={n: [layer for layer in c.layers if layer.suspect] for n, c in zip(names, candidates, strict=True)},
        documents=[_document_view(*pairs[index], [baseline_name, *names]) for index in worst(results)],
    )


def overall_outcome(comparison: Comparison) -> str:
    """The outcome over all candidates: "fail", "pass", or "open" if not every candidate was judged."""
    outcomes = {candidate.verdict.outcome for candidate in comparison.candidates}
    return "fail" if "fails" in outcomes else "pass" if outcomes == {"passes"} else "open"


def headline(names: Sequence[str], comparison: Comparison) -> str:
    """The verdict in one line."""
    if overall_outcome(comparison) == "open":
        reason = "no gate could be checked" if comparison.baseline.scores is None else "the baseline is too weak"
        return f"Not judged: {reason}"
    outcomes = [candidate.verdict.outcome for candidate in comparison.candidates]
    failing = [name for name, outcome in zip(names, outcomes, strict=True) if outcome == "fails"]
    if not failing:
        return {1: f"{names[0]} passes", 2: "Both candidates pass"}.get(len(names), f"All {len(names)} candidates pass")
    if len(failing) == 1:
        return f"{failing[0]} fails" + _others([outcome for outcome in outcomes if outcome != "fails"])
    return f"{len(failing)} of {len(names)} candidates fail"


def _others(outcomes: Sequence[str]) -> str:
    """The outcome of the candidates that do not fail, as the end of a headline."""
    count, passed = len(outcomes), outcomes.count("passes")
    if not count:
        return ""
    if passed == count:
        return ", the other passes" if count == 1 else f", the other {count} pass"
    if passed:
        return ", the others were not all judged"
    return ", the other was not judged" if count == 1 else f", the other {count} were not judged"


def _describe_documents(metadata: Mapping[str, Any]) -> str:
    if metadata["seed"] is None:
        return f"{metadata['count']}, with predictions kept in {metadata['source']}"
    kind = f", {metadata['kind']}" if metadata["kind"] else ""
    return f"{metadata['count']} of the evaluation split of {metadata['source']}{kind}, seed {metadata['seed']}"


def _provenance(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in metadata["versions"].items())
    return [
        ("Device", f"{metadata['device']}, {metadata['machine']}"),
        ("Versions", versions),
        ("Date", metadata["date"]),
    ]


def worst(results: Sequence[DocumentResult]) -> list[int]:
    """Indices of the documents to show: those with the largest mean KL, then others whose answer changed.

    Several candidates take turns, so that a bad one does not hide the worst documents of the others.
    """
    ranked = [
        sorted(range(len(results)), key=lambda index, n=number: -_mean_kl(results[index], n))  # type: ignore[misc]
        for number in range(len(results[0].candidates))
    ]
    order = list(dict.fromkeys(index for turn in zip_longest(*ranked) for index in turn))
    changed = [index for index in order[WORST:] if any(d.first_change is not None for d in results[index].differences)]
    return [*order[:WORST], *changed][:MOST]


def _mean_kl(result: DocumentResult, number: int) -> float:
    kl = result.differences[number].kl
    return sum(kl) / len(kl)


def _plots(names: Sequence[str], comparison: Comparison, results: Sequence[DocumentResult]) -> dict[str, Markup]:
    """Draw the plots that there are numbers for."""
    from runtime.compare.report import plots

    candidates: list[Candidate] = comparison.candidates
    drawn: dict[str, Any] = {"kl": plots.kl_by_position(names, results)}
    if all(candidate.differences for candidate in candidates):
        drawn["scores"] = plots.score_differences(names, candidates)
    if any(map(plots.has_errors, candidates)):
        drawn["layers"] = plots.layer_errors(names, candidates)
    if len(names) > 1 and all(c.cost and c.cost.tokens_per_second for c in candidates):
        drawn["cost"] = plots.cost(names, comparison.baseline, candidates)
    return {name: Markup(svg) for name, svg in drawn.items()}  # matplotlib escapes names


def _document_view(result: DocumentResult, document: Document, names: Sequence[str]) -> DocumentView:
    baseline, truth = result.baseline.scored, visible(result.truth)  # as it is scored
    answers = []
    if baseline is not None:
        pieces = differences(truth, visible(baseline.answer))
        answers.append(Answer(names[0], "the truth", pieces, baseline.exact_match == 1, None, None))
    expected, against = (truth, "the truth") if baseline is None else (baseline.answer, "the baseline")
    for number, candidate in enumerate(result.candidates):
        assert candidate.scored is not None
        answer = candidate.scored.answer
        pieces = differences(expected, visible(answer) if baseline is None else answer)
        exact = candidate.scored.exact_match == 1
        answers.append(Answer(names[number + 1], against, pieces, exact, _mean_kl(result, number), number))
    picture, size = _data_uri(document.image)
    return DocumentView(result.name, picture, size, result.prompt, result.truth, answers)


def _data_uri(image: Image.Image) -> tuple[str, tuple[int, int]]:
    """Encode an image as JPEG of at most 900 pixels a side; also returns its size."""
    small = image.copy()
    small.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(), small.size
