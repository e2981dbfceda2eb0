"""Writes the report of `--report`: a run as one page without other files or network access."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from calib_data.document import READ_TEXT
from console.errors import InputError
from console.version import package_version
from runtime.answer import AnswerOptions
from runtime.batch.output.report.figures import number, percent, time_histogram, token_histogram
from runtime.batch.output.report.samples import samples
from runtime.html.render import render_page, write_page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.batch.output.fields import FieldValues
    from runtime.batch.output.report.figures import Histogram
    from runtime.batch.output.report.samples import Sample
    from runtime.batch.output.shards import ShardFiles
    from runtime.batch.output.summary import Summary

_LETTERS, _LINES = 1000, 16  # of a text that are shown


def check_report(path: Path) -> None:
    """Raise InputError, before a run, for a report that could not be written after it."""
    if not path.absolute().parent.is_dir():
        raise InputError(f"--report {path}: there is no folder {path.absolute().parent}; make it first")
    if path.is_dir():
        raise InputError(f"--report {path}: is a folder; name a file in it")


def write_report(
    path: Path, settings: Mapping[str, Any], files: ShardFiles, shards: Sequence[int], summary: Summary
) -> None:
    """Write the page of a finished run. settings: those of its plan. shards: numbers of all its files, in order."""
    chosen = samples(files, shards, summary)
    write_page(
        render(settings, summary, chosen, files.form, f"{date.today()}, exaone-docvlm {package_version()}"), path
    )


def render(settings: Mapping[str, Any], summary: Summary, chosen: Sequence[Sample], form: str, made: str) -> str:
    """Render the page. form: of the output's files. made: when and by what."""
    kind, errors = settings["per"], summary.pages - summary.answered
    return render_page(
        Path(__file__).parent,
        summary=summary,
        model=PurePosixPath(settings["model"]).name or settings["model"],
        headline=headline(summary, kind),
        outcome="pass" if not errors else "open" if summary.answered else "fail",
        tiles=_tiles(summary, kind),
        about=[*_about(settings, summary), ("Report", made)],
        listed_errors=sum(error.pages for error in summary.errors),
        errors=errors,
        form=form,
        fields=[_field(name, filled, summary) for name, filled in summary.filled.items()],
        histograms=_histograms(summary),
        samples=[_sample(sample, settings["prompt"] or READ_TEXT) for sample in chosen],
        kind=kind,
        thinking=bool(settings.get("thinking")),
        counted=_counted,
    )


def headline(summary: Summary, kind: str) -> str:
    """The outcome in one line. kind: what a row is, "page" or "document"."""
    pages, errors = summary.pages, summary.pages - summary.answered
    if not errors:
        return f"All {pages:,} {kind}s are answered" if pages > 1 else f"The {kind} is answered"
    if not summary.answered:
        return f"None of {pages:,} {kind}s is answered" if pages > 1 else f"The {kind} is not answered"
    return f"{errors:,} of {pages:,} {kind}s {'have' if errors > 1 else 'has'} an error"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


@dataclass(frozen=True)
class Tile:
    """One number of the run."""

    label: str
    value: str
    note: str
    """What it is a part of, or its mean."""
    warns: bool = False
    """Whether it is a loss."""


def _tiles(summary: Summary, kind: str) -> list[Tile]:
    pages, errors = summary.pages, summary.pages - summary.answered
    answers = 0 if summary.answer_tokens is None else summary.answer_tokens.count
    documents = [] if kind == "document" else [Tile("documents", f"{summary.documents:,}", "")]
    return [
        Tile(f"{kind}s", f"{pages:,}", ""),
        *documents,
        Tile("answered", f"{summary.answered:,}", percent(summary.answered, pages)),
        Tile("with an error", f"{errors:,}", percent(errors, pages), errors > 0),
        Tile("truncated", f"{summary.truncated:,}", percent(summary.truncated, pages), summary.truncated > 0),
        Tile("retried", f"{summary.retried:,}", percent(summary.retried, pages)),
        Tile("answer tokens", f"{summary.tokens:,}", _mean(summary.tokens, answers, "answer")),
        Tile("prompt tokens", f"{summary.prompt_tokens:,}", _mean(summary.prompt_tokens, answers, "prompt")),
    ]


def _mean(tokens: int, count: int, noun: str) -> str:
    return f"{tokens / count:,.1f} per {noun}" if count else ""


def _about(settings: Mapping[str, Any], summary: Summary) -> list[tuple[str, str]]:
    """What was run, as names and texts. Options that were not given are the model's."""
    prompt = settings["prompt"]
    options = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in settings.items()
        if name in AnswerOptions.__annotations__ and value is not None and value is not False  # 0 is given
    ]
    return [
        ("Model", settings["model"]),
        ("Input", settings["input"]),
        ("Prompt", f"{READ_TEXT} (by default)" if prompt is None else prompt),
        ("Answers", f"JSON with {', '.join(summary.filled)}" if summary.filled else "text"),
        ("A row is", f"a {settings['per']}, in the order of the input; files of a folder are sorted by name"),
        ("Options", ", ".join(options) or "the model's"),
    ]


@dataclass(frozen=True)
class FrequentValue:
    """A value of a field that many rows have."""

    text: str
    rows: str
    share: float
    """Of the rows with a value, 0 to 1."""


@dataclass(frozen=True)
class FieldView:
    """A field of the schema."""

    name: str
    values: FieldValues
    filled: int
    percent: str
    """Rows with a value, of all."""
    share: float
    """The same, 0 to 1."""
    frequent: list[FrequentValue]
    """The most frequent values; none where all differ."""
    examples: list[str]
    """Some values where all differ."""
    numbers: list[tuple[str, str]]
    """Range and median."""


def _field(name: str, filled: int, summary: Summary) -> FieldView:
    values, pages = summary.values[name], summary.pages
    differ = all(count == 1 for _, count in values.frequent) and len(values.frequent) > 1
    least = "≥ " if values.missed else ""
    frequent = [FrequentValue(text, f"{least}{count:,}", count / filled) for text, count in values.frequent]
    numbers = []
    if values.least is not None and values.median is not None and values.most is not None:
        median = "≈ median" if values.sampled else "median"
        numbers = [("min", number(values.least)), (median, number(values.median)), ("max", number(values.most))]
    return FieldView(
        name,
        values,
        filled,
        percent(filled, pages),
        filled / pages,
        [] if differ else frequent,
        [value.text for value in frequent[:4]] if differ else [],
        numbers,
    )


def _histograms(summary: Summary) -> list[Histogram]:
    spreads = (summary.answer_tokens, token_histogram), (summary.answer_milliseconds, time_histogram)
    return [draw(spread) for spread, draw in spreads if spread is not None and spread.count > 1]


@dataclass(frozen=True)
class SampleView:
    """A row of the output."""

    title: str
    reason: str
    notes: str
    """Its length, time and end."""
    texts: list[tuple[str, str, str]]
    """Label, text, and what is left out of it."""
    error: str | None


def _sample(sample: Sample, prompt: str) -> SampleView:
    row = sample.row
    title = row["document"] + (f", page {row['page']}" if row["page"] else "")
    notes = []
    if row["answer"] is not None:
        notes = [_counted(row["tokens"], "token"), f"{row['milliseconds']:,} ms"]
        notes += ["truncated"] if row["finish"] == "length" else []
    asked = [] if row["prompt"] == prompt else [("Prompt", *_short(row["prompt"]))]
    texts = [(name, row[name.lower()]) for name in ("Reasoning", "Answer")]
    answered = [(name, *_short(text)) for name, text in texts if text is not None]
    return SampleView(title, sample.reason, ", ".join(notes), asked + answered, row["error"])


def _short(text: str) -> tuple[str, str]:
    """A text, and what is said of its end if that is left out."""
    short = "\n".join(text[:_LETTERS].split("\n")[:_LINES])
    return short, f"… {len(text) - len(short):,} more letters" if len(short) < len(text) else ""
