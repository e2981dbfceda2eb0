"""Messages of a conversation, and the functions that a model may call."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from runtime.serve.protocol.given import Given, Text

MAX_MESSAGES, MAX_PARTS, MAX_TOOLS = 4096, 1024, 128
MAX_ALL_PARTS = 16384
"""Parts and tool calls of all messages: checking them takes 20 us each, in the event loop."""


class TextPart(Given):
    """Text inside a message."""

    type: Literal["text"]
    text: Text


class ImageUrl(Given):
    """Where an image is."""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = {"detail": ("auto", "high")}

    url: Text
    """A data URI, or an address in a domain that the server allows."""


class ImagePart(Given):
    """An image inside a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class FileData(Given):
    """A PDF."""

    file_data: Text
    """A data URI."""
    filename: Text | None = None
    """What errors call it."""


class FilePart(Given):
    """A PDF inside a message; all its pages are read."""

    type: Literal["file"]
    file: FileData


class VideoUrl(Given):
    """Where a video is."""

    url: Text
    """A data URI, or an address in a domain that the server allows."""


class VideoPart(Given):
    """A video inside a message."""

    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | FilePart | VideoPart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS)]
TextParts = Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS)]


class SystemMessage(Given):
    """Instructions, before everything else."""

    role: Literal["system", "developer"]
    content: Text | TextParts


class UserMessage(Given):
    """What the user says and shows."""

    role: Literal["user"]
    content: Text | Parts


class CalledFunction(Given):
    """A function that the model has called."""

    name: Text
    arguments: Text
    """A JSON object, as text."""


class ToolCall(Given):
    """A call that an earlier answer made."""

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Given):
    """An earlier answer."""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **dict.fromkeys(("refusal", "audio", "function_call"), ()),
        "annotations": ([],),
    }

    role: Literal["assistant"]
    content: Text | TextParts | None = None
    tool_calls: list[ToolCall] = Field(default=[], fail_fast=True, max_length=MAX_TOOLS)
    reasoning: Text | None = None
    """Reasoning of that answer. Most templates leave it out."""
    reasoning_content: Text | None = None
    """The same, under its other name."""


class ToolMessage(Given):
    """What a called function has returned."""

    role: Literal["tool"]
    tool_call_id: Text
    content: Text | TextParts


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


def _refuse_many_parts(messages: object) -> object:
    """Raise ValueError for more parts and tool calls than are checked."""
    given = [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
    lists = (message.get(name) for message in given for name in ("content", "tool_calls"))
    if sum(len(each) for each in lists if isinstance(each, list)) > MAX_ALL_PARTS:
        raise ValueError(f"has more than {MAX_ALL_PARTS} parts and tool calls; join texts, or send fewer messages")
    return messages


Messages = Annotated[
    list[Message],
    Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES),
    BeforeValidator(_refuse_many_parts),
]


class Function(Given):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments."""
    strict: bool = False
    """Arguments match the schema. They do wherever a call is forced by tool_choice, whether this is set or not."""


class Tool(Given):
    """Something that the model may use."""

    type: Literal["function"]
    function: Function


Tools = Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)]


class TemplateOptions(Given):
    """What the chat template takes."""

    enable_thinking: bool | None = None
    """Whether to reason before answering; the template decides if absent."""


class Conversation(Given):
    """Messages, and how they are written as a prompt."""

    messages: Messages
    tools: Tools = Field(default=[])
    """Functions that the model may call."""
    chat_template_kwargs: TemplateOptions = TemplateOptions()

    def message_dicts(self) -> list[dict[str, Any]]:
        """Messages as plain objects, without fields that are absent."""
        return [message.model_dump(exclude_none=True) for message in self.messages]

    def tool_dicts(self) -> list[dict[str, Any]]:
        """Functions as plain objects, as templates take them."""
        return [tool.model_dump(exclude_none=True, exclude_unset=True) for tool in self.tools]
