"""What a run is: what every worker is told, and what a later run must agree with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from runtime.answer import MAX_NEW_TOKENS, AnswerOptions
from runtime.batch.output.columns import BASE, field_columns
from runtime.batch.output.shards import PARQUET, ShardFiles
from runtime.batch.source.open import source_version
from runtime.ort.manifest import FILE

if TYPE_CHECKING:
    import pyarrow as pa

    from runtime.batch.source.page import Source
    from runtime.batch.storage import Storage

CONTENT = "content"
"""Setting with what tells that a model or an input has changed, by the option that names it."""
_LENGTH = "max_new_tokens"
_LETTERS = 60  # of a setting in a message


@dataclass(frozen=True)
class Job:
    """A model, pages, a question, and where the answers go. It is sent to every worker."""

    model: Storage
    """Exported folder."""
    source: Source
    """Its pages."""
    output: Storage
    """Where the plan, the answers and the journal are."""
    schema: dict[str, Any] | None = None
    """JSON schema of every answer; None for free text."""
    options: AnswerOptions = field(default_factory=AnswerOptions)
    """Sampling, length and thinking."""
    form: str = PARQUET
    """Of the output files."""
    device: str = "cpu"
    """Device of a worker."""
    threads: int | None = None
    """CPU threads of a worker; None for all of a machine, or one next to a GPU."""
    memory_limit: float | None = None
    """GiB of a GPU for the weights and activations of a graph; None for all."""
    max_rows: int | None = None
    """Answers that a worker generates at the same time; None for what fits."""
    max_context: int | None = None
    """Tokens of a prompt and its answer; None for what the largest image needs."""
    retry_errors: bool = False
    """Whether pages with an error are answered again."""

    @cached_property
    def _model_version(self) -> str:
        """Another one where the model was exported anew."""
        return hashlib.sha256(self.model.read(FILE)).hexdigest()[:16]

    @cached_property
    def _input_version(self) -> list[str | None]:
        """Another one where the input has become another kind of source, or a file with other content."""
        return [self.source.kind, source_version(self.source)]

    @cached_property
    def columns(self) -> list[pa.Field]:
        """Columns of the schema's properties. Raises InputError for a schema without any."""
        return [] if self.schema is None else field_columns(self.schema)

    @property
    def files(self) -> ShardFiles:
        """Its output files."""
        schema = BASE
        for column in self.columns:
            schema = schema.append(column)
        return ShardFiles(self.output, schema, self.form)

    def settings(self) -> dict[str, Any]:
        """What makes answers comparable: a run that goes on must have the same."""
        return {
            "model": self.model.url,
            "input": self.source.storage.url,
            "prompt": self.source.prompt,
            "schema": self.schema,
            "per": "document" if self.source.per_document else "page",
            "format": self.form,
            **self.options,
        }

    def planned(self) -> dict[str, Any]:
        """The settings with what tells that the model or the input has changed: what a plan keeps."""
        return {**self.settings(), CONTENT: {"model": self._model_version, "input": self._input_version}}

    def check_same(self, planned: dict[str, Any]) -> None:
        """Raise InputError where the output was begun with other settings.

        With `retry_errors`, answers may be longer than before: truncated ones are errors of a schema.
        """
        now, planned = self.planned(), dict(planned)
        content, before = now.pop(CONTENT), planned.pop(CONTENT, None)
        other = [name for name in {**now, **planned} if now.get(name) != planned.get(name)]
        if self.retry_errors and now.get(_LENGTH, MAX_NEW_TOKENS) >= planned.get(_LENGTH, MAX_NEW_TOKENS):
            other = [name for name in other if name != _LENGTH]
        if other:
            was = " and ".join(_option(name, planned.get(name)) for name in other)
            raise InputError(
                f"{self.output.url}: was begun {was}; run the same command again, or give another --output"
            )
        for name in content:
            if not isinstance(before, dict) or content[name] != before.get(name):
                raise InputError(
                    f"{self.output.url}: --{name} {now[name]} has changed since the run was begun; give another "
                    "--output"
                )


def _option(name: str, value: object) -> str:
    """How an option was given, shortened."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return f"without {option}"
    text = "" if value is True else " " + (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return f"with {option}{text if len(text) <= _LETTERS else text[:_LETTERS] + '…'}"
