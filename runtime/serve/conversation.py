"""From the messages of a request to the prompt that the engine reads."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from PIL import Image

from calib_data.images import to_rgb
from calib_data.scores import visible
from console.errors import InputError
from runtime.chat import TooLongError
from runtime.inputs.images import image_grid
from runtime.prompt import prompt_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.exported import ExportedModel
    from runtime.inputs.messages import Message, Part, Tool
    from runtime.inputs.video import Video
    from runtime.prompt import PromptInputs
    from runtime.serve.media import Media

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def open_conversation(
    model: ExportedModel,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool] = (),
    *,
    thinking: bool,
    media: Media,
    context: int,
) -> PromptInputs:
    """Open the images, PDFs and videos of a conversation, and render it with its tools.

    messages, tools: as OpenAI's API has them. context: tokens that the prompt must not fill. Raises InputError, which
    begins with the place where it is one message's, such as `messages[1].content[0].image_url: …`.
    """
    _check_order(messages)
    reader = _Reader(model, media, context)
    rendered = [reader.read(message, f"messages[{index}]") for index, message in enumerate(messages)]
    images, videos, names = reader.images, reader.videos, reader.names
    try:
        return prompt_inputs(
            model, rendered, images, videos, names=names, tools=tools, thinking=thinking, context=context
        )
    except RecursionError:
        raise InputError("messages: JSON of a tool or of its arguments is nested too deeply; send it flatter") from None


def _check_order(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError for a conversation that has nothing to answer, or results of calls that were not made."""
    if not messages:
        raise InputError("messages: is empty; send at least one message of the user")
    last, calls = len(messages) - 1, set[str]()
    for index, message in enumerate(messages):
        role, place = message.get("role"), f"messages[{index}]"
        if role not in _ROLES:
            raise InputError(f"{place}.role: {role!r} is none of {', '.join(_ROLES)}")
        if role == "assistant":
            calls |= {str(call.get("id")) for call in message.get("tool_calls") or []}
        if role == "tool" and str(message.get("tool_call_id")) not in calls:
            raise InputError(f"{place}.tool_call_id: no earlier message has this tool call")
        if index == last and role not in ("user", "tool"):
            raise InputError(f"{place}.role: the last message is the {role}'s; end with one of the user or of a tool")


class _Reader:
    """Reads the messages of one request in order, and collects what they show."""

    def __init__(self, model: ExportedModel, media: Media, context: int) -> None:
        self._model, self._media, self._context = model, media, context
        self._tokens = 0  # of images
        self.images: list[Image.Image] = []
        self.names: list[str] = []
        self.videos: list[Video] = []

    def read(self, message: Mapping[str, Any], place: str) -> Message:
        """A message as chat templates take it."""
        role, calls = _ROLES[message["role"]], message.get("tool_calls")
        read: Message = {"role": role, "content": self._content(message, place)}
        if role == "assistant":
            if reasoning := message.get("reasoning_content") or message.get("reasoning"):
                read["reasoning_content"] = str(reasoning)
            if calls:
                read["tool_calls"] = [_call(call, f"{place}.tool_calls[{at}]") for at, call in enumerate(calls)]
        if role == "tool":
            read["tool_call_id"] = str(message["tool_call_id"])
        return read

    def _content(self, message: Mapping[str, Any], place: str) -> str | list[Part]:
        """Text, or parts. Raises InputError for a user who says and shows nothing."""
        content, role = message.get("content"), message["role"]
        if isinstance(content, list):
            content = self._parts(content, role, f"{place}.content")
        elif not isinstance(content, str | None):
            raise InputError(f"{place}.content: is neither a text nor a list of parts")
        texts = [part.get("text", "image") for part in content] if isinstance(content, list) else [content or ""]
        if role == "user" and not any(map(visible, texts)):
            raise InputError(f"{place}.content: is empty; write a question")
        return content or ""

    def _parts(self, parts: Sequence[Mapping[str, Any]], role: str, place: str) -> str | list[Part]:
        """Parts in their order; one text where they are all text and the template of a text-only model reads them."""
        read = [part for at, one in enumerate(parts) for part in self._part(one, role, f"{place}[{at}]")]
        texts = [part["text"] for part in read if part["type"] == "text"]
        plain = len(texts) == len(read) and (len(read) < 2 or self._model.manifest.vision is None)
        return "\n".join(texts) if plain else read

    def _part(self, part: Mapping[str, Any], role: str, place: str) -> list[Part]:
        """One part of a message; a PDF is a part for each page."""
        kind = part.get("type")
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise InputError(f"{place}.text: is not a text")
            return [{"type": "text", "text": part["text"]}]
        if kind not in ("image_url", "file", "video_url"):
            raise InputError(f"{place}.type: {kind!r} is none of text, image_url, file, video_url")
        if role != "user":
            raise InputError(f"{place}.type: {kind} may be in messages of the user only")
        place = f"{place}.{kind}"
        if self._model.manifest.vision is None:
            raise InputError(f"{place}: this model reads text only")
        if kind == "file":
            return [{"type": "image"} for _ in self._pages(part["file"], place)]
        url = _text(part[kind], "url", place)
        if kind == "image_url":
            self._refuse_more_images(place)
            self._add_image(self._media.image(url, place), place)
            return [{"type": "image"}]
        if len(self.videos) == self._media.limits.videos:
            raise InputError(f"{place}: is more than {self._media.limits.videos} videos; send fewer")
        self.videos.append(self._media.video(url, place))
        return [{"type": "video"}]

    def _pages(self, file: Mapping[str, Any], place: str) -> list[str]:
        """Add the pages of a PDF. Returns their names."""
        if file.get("file_id") is not None:
            raise InputError(f"{place}.file_id: this server keeps no files; send file_data")
        names = []
        for name, page in self._media.pages(_text(file, "file_data", place), place):
            self._refuse_more_images(name)
            self._add_image(page, name)
            names.append(name)
        return names

    def _refuse_more_images(self, name: str) -> None:
        if len(self.images) == self._media.limits.images:
            raise InputError(f"{name}: is more than {self._media.limits.images} images; send fewer")

    def _add_image(self, image: Image.Image, name: str) -> None:
        """Keep an image in the size in which the model sees it: many photos would fill the memory.

        Raises InputError at the image that no longer fits the context.
        """
        settings, vision = self._model.image_settings, self._model.manifest.vision
        assert vision is not None
        grid = image_grid(image.height, image.width, settings, name)
        self._tokens += math.prod(grid) // vision.merge_size**2
        if self._tokens >= self._context:
            raise TooLongError(f"{name}: does not fit the context of {self._context} tokens; send fewer images")
        rows, columns = (side * settings.patch_size for side in grid)
        # Not where the size that it has afterwards would be changed once more, as that of a very long image.
        if rows * columns < image.height * image.width and image_grid(rows, columns, settings, name) == grid:
            image = to_rgb(image).resize((columns, rows), Image.Resampling(settings.resample))
        self.images.append(image)
        self.names.append(name)


def _text(holder: object, name: str, place: str) -> str:
    """A text of an object. Raises InputError where it is missing."""
    value = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, str) or not value:
        raise InputError(f"{place}.{name}: is missing or empty")
    return value


def _call(call: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A tool call with its arguments as an object, as templates take it: clients send the text that they were sent."""
    function = call.get("function") or {}
    arguments = function.get("arguments") or "{}"
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}.function.arguments: is not JSON ({error})") from error
    if not isinstance(arguments, dict):
        raise InputError(f"{place}.function.arguments: is not a JSON object")
    name = _text(function, "name", f"{place}.function")
    return {"type": "function", "function": {"name": name, "arguments": arguments}}
