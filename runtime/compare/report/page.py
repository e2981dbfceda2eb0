"""report.html: a comparison as one page that needs nothing else, neither files nor a network."""

from __future__ import annotations

import base64
import importlib.util
import io
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup
from PIL import Image

from console.errors import InputError
from runtime.compare.gate import about_baseline
from runtime.compare.report.diff import Piece, differences
from runtime.compare.report.table import groups, short_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from calib_data.document import Document
    from runtime.compare.measure import Measured
    from runtime.compare.result import Candidate, Comparison

FILE = "report.html"
WORST, MOST = 8, 12  # documents shown: of the largest KL, and with those whose answer changed
_WIDEST = 900
_QUALITY = 80


def require_matplotlib() -> None:
    """Raise InputError where plots cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--output: the report's plots need matplotlib; install the extra 'report', or leave it out")


@dataclass(frozen=True)
class Answer:
    """One model's answer, marked where it is unlike another text. number: of a candidate; None for the baseline."""

    name: str
    against: str
    pieces: list[Piece]
    exact: bool
    kl: float | None
    number: int | None

    @property
    def same(self) -> bool:
        """Whether there is no difference to mark."""
        return all(piece.kind == "same" for piece in self.pieces)


@dataclass(frozen=True)
class Shown:
    """A document of the report. picture: a data URI. answers: the baseline's, if it has one, and the candidates'."""

    name: str
    picture: str
    size: tuple[int, int]
    prompt: str
    truth: str
    answers: list[Answer]


def write_report(
    comparison: Comparison, measured: Sequence[Measured], documents: Sequence[Document], folder: Path
) -> Path:
    """Write report.html into a folder and return its path. documents: those that were measured, in the same order."""
    path = folder / FILE
    text = render(comparison, measured, documents)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need not be UTF-8
    return path


def render(comparison: Comparison, measured: Sequence[Measured], documents: Sequence[Document]) -> str:
    """The page. The same comparison gives the same bytes."""
    from runtime.compare.report import plots

    candidates = comparison.candidates
    baseline_name, *names = short_names([comparison.baseline.model, *(one.model for one in candidates)])
    pairs = list(zip(measured, documents, strict=True))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        comparison=comparison,
        candidates=list(zip(names, candidates, strict=True)),
        baseline_name=baseline_name,
        signs=plots.SIGNS,
        headline=headline(names, comparison),
        tone=tone(comparison),
        weak=about_baseline(comparison.baseline.scores),
        graphs=["" if line is None else f": {line}" for line in comparison.about["graphs"]],
        about_documents=_documents(comparison.about),
        provenance=_provenance(comparison.about),
        has_answers=comparison.baseline.scores is not None,
        has_weights=any(layer.error is not None for candidate in candidates for layer in candidate.layers),
        groups=groups(comparison),
        plots=_plots(names, comparison, measured),
        suspects={n: [layer for layer in c.layers if layer.suspect] for n, c in zip(names, candidates, strict=True)},
        shown=[_shown(*pairs[place], [baseline_name, *names]) for place in worst(measured)],
    )


def tone(comparison: Comparison) -> str:
    """What the verdict is: "fail", "pass", or "open" where what was checked cannot tell."""
    outcomes = {candidate.verdict.outcome for candidate in comparison.candidates}
    return "fail" if "fails" in outcomes else "pass" if outcomes == {"passes"} else "open"


def headline(names: Sequence[str], comparison: Comparison) -> str:
    """The verdict in one line."""
    if tone(comparison) == "open":
        reason = "no gate could be checked" if comparison.baseline.scores is None else "the baseline is too weak"
        return f"Not judged: {reason}"
    outcomes = [one.verdict.outcome for one in comparison.candidates]
    failing = [name for name, outcome in zip(names, outcomes, strict=True) if outcome == "fails"]
    if not failing:
        return {1: f"{names[0]} passes", 2: "Both candidates pass"}.get(len(names), f"All {len(names)} candidates pass")
    if len(failing) == 1:
        return f"{failing[0]} fails" + _others([outcome for outcome in outcomes if outcome != "fails"])
    return f"{len(failing)} of {len(names)} candidates fail"


def _others(outcomes: Sequence[str]) -> str:
    """What came of those that do not fail."""
    count, passed = len(outcomes), outcomes.count("passes")
    if not count:
        return ""
    if passed == count:
        return ", the other passes" if count == 1 else f", the other {count} pass"
    if passed:
        return ", the others were not all judged"
    return ", the other was not judged" if count == 1 else f", the other {count} were not judged"


def _documents(about: Mapping[str, Any]) -> str:
    if about["seed"] is None:
        return f"{about['count']}, those that {about['source']} keeps predictions of"
    kind = f", {about['kind']}" if about["kind"] else ""
    return f"{about['count']} of the evaluation split of {about['source']}{kind}, seed {about['seed']}"


def _provenance(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [("Device", f"{about['device']}, {about['machine']}"), ("Versions", versions), ("Date", about["date"])]


def worst(measured: Sequence[Measured]) -> list[int]:
    """Places of the documents to show: those of the largest mean KL, then others whose answer changed.

    With several candidates each one's worst comes in turn, so that a bad one does not hide the others'.
    """
    ranked = [
        sorted(range(len(measured)), key=lambda place, n=number: -_mean_kl(measured[place], n))  # type: ignore[misc]
        for number in range(len(measured[0].candidates))
    ]
    order = list(dict.fromkeys(place for turn in zip_longest(*ranked) for place in turn))
    changed = [place for place in order[WORST:] if any(d.first_change is not None for d in measured[place].differences)]
    return [*order[:WORST], *changed][:MOST]


def _mean_kl(one: Measured, number: int) -> float:
    kl = one.differences[number].kl
    return sum(kl) / len(kl)


def _plots(names: Sequence[str], comparison: Comparison, measured: Sequence[Measured]) -> dict[str, Markup]:
    """Those plots that there are numbers for."""
    from runtime.compare.report import plots

    candidates: list[Candidate] = comparison.candidates
    drawn: dict[str, Any] = {"kl": plots.kl_by_position(names, measured)}
    if all(candidate.differences for candidate in candidates):
        drawn["scores"] = plots.score_differences(names, candidates)
    if any(map(plots.has_errors, candidates)):
        drawn["layers"] = plots.layer_errors(names, candidates)
    if len(names) > 1 and all(one.cost and one.cost.tokens_per_second for one in candidates):
        drawn["cost"] = plots.cost(names, comparison.baseline, candidates)
    return {name: Markup(svg) for name, svg in drawn.items()}  # matplotlib escapes names


def _shown(one: Measured, document: Document, names: Sequence[str]) -> Shown:
    baseline = one.baseline.scored
    answers = []
    if baseline is not None:
        pieces = differences(one.truth, baseline.answer)
        answers.append(Answer(names[0], "the truth", pieces, baseline.exact_match == 1, None, None))
    expected, against = (one.truth, "the truth") if baseline is None else (baseline.answer, "the baseline")
    for number, reading in enumerate(one.candidates):
        assert reading.scored is not None
        pieces = differences(expected, reading.scored.answer)
        exact = reading.scored.exact_match == 1
        answers.append(Answer(names[number + 1], against, pieces, exact, _mean_kl(one, number), number))
    picture, size = _data_uri(document.image)
    return Shown(one.name, picture, size, one.prompt, one.truth, answers)


def _data_uri(image: Image.Image) -> tuple[str, tuple[int, int]]:
    """A picture of at most 900 pixels a side, as JPEG, and its size."""
    small = image.copy()
    small.thumbnail((_WIDEST, _WIDEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(), small.size
