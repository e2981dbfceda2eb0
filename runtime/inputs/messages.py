"""The messages of a conversation as chat templates take them, their text checked and in its canonical form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar, cast

from console.errors import InputError
from console.text import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Json = TypeVar("Json")
Tool: TypeAlias = "Mapping[str, Any]"
"""A tool as OpenAI declares it: {"type": "function", "function": {"name", "description", "parameters"}}."""


class Part(TypedDict, total=False):
    """One part of a message: text, or the place of the next image or video."""

    type: Literal["text", "image", "video"]
    text: str


class Message(TypedDict, total=False):
    """One message: of the system, the user, the assistant or a tool."""

    role: str
    content: str | list[Part]
    reasoning_content: str
    """The reasoning before an assistant's answer; many templates leave it out."""
    tool_calls: list[dict[str, Any]]
    """{"type": "function", "function": {"name", "arguments"}} of an assistant, with arguments as an object."""
    tool_call_id: str
    """The call that a tool's result answers."""


def user_turn(text: str, images: int = 0, videos: int = 0) -> list[Message]:
    """A conversation of one question: images, then videos, then text."""
    # A plain string without images: templates of text-only models support nothing else.
    content: str | list[Part] = text
    if images or videos:
        content = [{"type": "image"} for _ in range(images)]
        content += [{"type": "video"} for _ in range(videos)]
        content += [{"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def canonical_text(value: Json, place: str) -> Json:
    """A JSON value whose texts are all `canonical`, keys of objects too.

    Raises InputError, naming the place, for half of a surrogate pair: bytes of a command line that are not UTF-8.
    """
    made: Any = value
    if isinstance(value, str):
        if not _is_utf8(value):
            raise InputError(f"{place}: {value!r} is not valid UTF-8, check how the text is encoded")
        made = canonical(value)
    elif isinstance(value, dict):
        made = {canonical_text(key, place): canonical_text(item, f"{place}.{key}") for key, item in value.items()}
    elif isinstance(value, list):
        made = [canonical_text(item, f"{place}[{index}]") for index, item in enumerate(value)]
    return cast("Json", made)


def texts(value: object) -> Iterator[str]:
    """All texts of a JSON value, keys of objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def without_calls(messages: Sequence[Message]) -> list[Message]:
    """The messages without the tool calls of the assistant."""
    kept: list[Message] = []
    for message in messages:
        bare = message.copy()
        bare.pop("tool_calls", None)
        kept.append(bare)
    return kept


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
