"""`python -m runtime compare`: check the options, measure every document, write the result files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from console.errors import InputError
from runtime.compare.measuring.baseline import ReferenceBaseline
from runtime.compare.measuring.measure import measure_all
from runtime.compare.measuring.progress import Progress
from runtime.compare.provenance import provenance, resume_settings
from runtime.compare.report.junit import write_junit
from runtime.compare.report.page import check_matplotlib, write_report
from runtime.compare.summary import summarize
from runtime.evaluate import evaluation_documents, say_without_effect

if TYPE_CHECKING:
    from pathlib import Path

    from calib_data.document import Document
    from calib_data.rendered.render import Kind
    from runtime.compare.gate import Gates
    from runtime.compare.measuring.baseline import Baseline
    from runtime.compare.measuring.models import Models
    from runtime.compare.result import Comparison, DocumentResult

RENDERED = "rendered"
_COUNT = 50


@dataclass(frozen=True)
class DocumentChoice:
    """Which documents to compare on."""

    source: str
    """Source, as `evaluation_documents` reads it."""
    count: int | None
    """Number of documents; None for 50, or all of a reference."""
    seed: int
    """Seed that chooses the documents of a source."""
    kind: Kind | None
    """Kind of rendered documents; None for a mix."""

    def open(self, baseline: Baseline) -> tuple[list[Document], dict[str, Any]]:
        """The documents, and how they were chosen, as compare.json keeps it."""
        if isinstance(baseline, ReferenceBaseline):
            if (self.seed, self.kind) != (0, None):
                raise InputError("--seed, --kind: a reference has documents of its own; leave these out")
            documents = baseline.documents[: self.count]
            return documents, {"source": str(baseline.path), "kind": None, "seed": None, "count": len(documents)}
        documents = evaluation_documents(self.source, self.count or _COUNT, self.seed, self.kind)
        return documents, {"source": self.source, "kind": self.kind, "seed": self.seed, "count": len(documents)}


class Compared(NamedTuple):
    """A finished comparison."""

    result: Comparison
    """Scores, gates and verdicts."""
    content: dict[str, Any]
    """Content of compare.json."""
    report: Path | None
    """The HTML report; None without `output`."""


def compare_folders(
    models: Models, choice: DocumentChoice, gates: Gates, *, output: Path | None, junit: Path | None, jobs: int
) -> Compared:
    """Compare models, write compare.json and report.html to `output` and JUnit XML to `junit`.

    Raises InputError before anything is measured where an option cannot work.
    """
    if output:
        check_matplotlib()
    if junit and not junit.absolute().parent.is_dir():
        raise InputError(f"--junit {junit}: there is no folder {junit.absolute().parent}; make it first")
    if junit and junit.is_dir():
        raise InputError(f"--junit {junit}: is a folder; name a file in it")
    loaded = models.load()
    for model in loaded.folders:
        say_without_effect(model)
    documents, about = choice.open(loaded.baseline)
    about["device"] = models.device
    with Progress(output, resume_settings(models, about)) as progress:
        measured = measure_all(models, loaded, documents, progress, jobs)
        result = summarize(models, loaded, measured, gates, about | provenance(loaded))
        if output:
            progress.check_unchanged(documents)  # the report shows them
        return _write(result, measured, documents, output, junit)


def _write(
    result: Comparison,
    measured: list[DocumentResult],
    documents: list[Document],
    output: Path | None,
    junit: Path | None,
) -> Compared:
    content, report = result.to_json(measured), None
    if output:
        partial = output / "compare.json.partial"
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # as in `Progress.add`
        partial.replace(output / "compare.json")
        report = write_report(result, measured, documents, output)
    if junit:
        write_junit(result, junit)
    return Compared(result, content, report)
