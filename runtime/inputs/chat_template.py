"""The chat template of a model folder: where transformers looks for it, and how it compiles it.

A vision-language model is prompted through its processor, a text model through its tokenizer. The two of transformers
search different places (`ProcessorMixin.get_processor_dict`, `PreTrainedTokenizerBase._from_pretrained`):

    processor: processor_config.json, chat_template.json, chat_template.jinja, additional_chat_templates/
    tokenizer: additional_chat_templates/, chat_template.jinja, tokenizer_config.json

The first place counts. A processor without a template leaves its tokenizer's. Of several templates in one place, the
one named "default" counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Scope
from jinja2.sandbox import ImmutableSandboxedEnvironment

from calib_data.document import THINK_END
from console.errors import InputError
from console.files import read_object, read_text

if TYPE_CHECKING:
    from pathlib import Path

    from jinja2.nodes import Node
    from jinja2.parser import Parser

TEMPLATE = "chat_template.jinja"
PROCESSOR_TEMPLATE = "chat_template.json"
ADDITIONAL_TEMPLATES = "additional_chat_templates"
PROCESSOR_CONFIG = "processor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_KEY, _DEFAULT = "chat_template", "default"


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template that compiles."""

    path: Path
    """File that it is in."""
    text: str
    """Its source."""
    compiled: jinja2.Template
    """Renders a conversation."""


def load_chat_template(folder: Path) -> ChatTemplate:
    """Load the template that transformers would use. Raises InputError where there is none, or it is no template."""
    path, text = _find(folder)
    try:
        return ChatTemplate(path, text, _environment().from_string(text))
    except (jinja2.TemplateError, SyntaxError, RecursionError) as error:  # Python compiles it, too
        raise InputError(f"{path}: is not a valid Jinja template ({error})") from error


def write_reasoning(template: ChatTemplate, open_prompt: str, closed_prompt: str, reasoning: str) -> str:
    """Write what comes between a prompt with thinking and the answer: the reasoning and its end, as the template does.

    open_prompt, closed_prompt: a prompt rendered with and without thinking. The second goes on with an empty reasoning.
    Raises InputError for a template that has no form for reasoning.
    """
    parts = reasoning_end(open_prompt, closed_prompt)
    if parts is None:
        raise InputError(
            f"{template.path}: does not show how reasoning ends (enable_thinking), and a document has reasoning; give "
            "documents without it"
        )
    before, line, closing = parts
    return before + reasoning + line + closing


def reasoning_end(open_prompt: str, closed_prompt: str) -> tuple[str, str, str] | None:
    """What a prompt without thinking has more than one with it.

    The text before the reasoning, the line end after it, and the text from `</think>` on. None where the template
    writes no `</think>` there.
    """
    opening, marker, rest = closed_prompt.removeprefix(open_prompt).partition(THINK_END)
    if not closed_prompt.startswith(open_prompt) or not marker:
        return None
    before = opening.removesuffix("\n")
    return before, opening[len(before) :], marker + rest


def additional_templates(folder: Path) -> list[Path]:
    """List the files of additional_chat_templates/, sorted by name."""
    return sorted((folder / ADDITIONAL_TEMPLATES).glob("*.jinja"))


def _find(folder: Path) -> tuple[Path, str]:
    """Find the file and the text of the template."""
    found = (_of_processor(folder) if _has_processor(folder) else None) or _of_tokenizer(folder)
    if found is None:
        raise InputError(
            f"{folder / TEMPLATE}: no such file, and no other file has a chat template; copy it from the model's "
            "original folder"
        )
    path, templates = found
    if not isinstance(templates, dict):
        templates = {_DEFAULT: templates}
    text = templates.get(_DEFAULT)
    if text is None:
        names = ", ".join(sorted(map(str, templates)))
        raise InputError(f"{path}: has chat templates ({names}), but none named {_DEFAULT}; name one of them so")
    if not isinstance(text, str) or not text:
        raise InputError(f"{path}: its chat template is {text!r}, not a text; copy the file from the original folder")
    return path, text


def _has_processor(folder: Path) -> bool:
    """Tell whether a model takes images, and so has a processor."""
    path = folder / "config.json"
    return path.exists() and "vision_config" in read_object(path)


def _of_processor(folder: Path) -> tuple[Path, Any] | None:
    """The processor's template, or its templates by name, and their file."""
    legacy, config = folder / PROCESSOR_TEMPLATE, folder / PROCESSOR_CONFIG
    earlier = _of_legacy(folder) if legacy.exists() else None  # transformers refuses it even where another one counts
    if config.exists() and (own := read_object(config).get(_KEY)) is not None:
        return config, own
    if earlier:
        return earlier
    if (folder / TEMPLATE).exists():
        return folder / TEMPLATE, read_text(folder / TEMPLATE)
    return _of_additional(folder)


def _of_legacy(folder: Path) -> tuple[Path, Any]:
    """What chat_template.json has."""
    path = folder / PROCESSOR_TEMPLATE
    content = read_object(path)
    if _KEY not in content:
        raise InputError(f"{path}: has no {_KEY}; copy it from the model's original folder")
    if additional_templates(folder):
        raise InputError(f"{path}: transformers refuses it together with {ADDITIONAL_TEMPLATES}/; remove one of them")
    return path, content[_KEY]


def _of_tokenizer(folder: Path) -> tuple[Path, Any] | None:
    """The tokenizer's template, or its templates by name, and their file."""
    if (folder / ADDITIONAL_TEMPLATES / f"{_DEFAULT}.jinja").exists():
        return _of_additional(folder)
    if (folder / TEMPLATE).exists():
        return folder / TEMPLATE, read_text(folder / TEMPLATE)
    if additional_templates(folder):
        return _of_additional(folder)
    config = folder / TOKENIZER_CONFIG
    templates = read_object(config).get(_KEY) if config.exists() else None
    if templates is None:
        return None
    if isinstance(templates, list):
        try:
            templates = {template["name"]: template["template"] for template in templates}
        except (TypeError, KeyError):
            raise InputError(f"{config}: {_KEY} is a list, but not of objects with name and template") from None
    return config, templates


def _of_additional(folder: Path) -> tuple[Path, dict[str, str]] | None:
    """The templates of additional_chat_templates/ by name; the path of the default where there is one."""
    templates = {path.stem: read_text(path) for path in additional_templates(folder)}
    place = folder / ADDITIONAL_TEMPLATES
    return (place / f"{_DEFAULT}.jinja" if _DEFAULT in templates else place, templates) if templates else None


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training. It renders as if it were not there."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> Node:
        """Keep the body, with its own variables as in transformers."""
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment that transformers gives its templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without escaped HTML characters, unlike Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
