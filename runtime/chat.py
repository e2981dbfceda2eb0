"""Chat template and tokenizer: from a conversation to token ids, and from generated ids to text."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from calib_data.document import THINK_END
from console.errors import InputError
from console.text import canonical
from runtime.inputs.chat_template import load_chat_template, reasoning_end, write_reasoning
from runtime.inputs.messages import canonical_text, texts, user_turn, without_calls
from runtime.inputs.tokenizer import load_special_tokens, load_tokenizer
from runtime.reasoning import TOOL_CALL, TOOL_CALL_END, ReasoningEnd, ReasoningParser

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from runtime.inputs.messages import Message, Tool

IMAGE_TOKEN = "<|image_pad|>"
VIDEO_TOKEN = "<|video_pad|>"


class TooLongError(InputError):
    """A prompt that fills the context."""


class AnswerText(NamedTuple):
    """Generated text in two parts; either may be empty."""

    reasoning: str
    """Text before `</think>`, or before a tool call."""
    text: str
    """Text after `</think>`, or from the tool call on."""


class Chat:
    """The tokenizer and chat template of a model folder."""

    def __init__(self, folder: Path) -> None:
        """Read the tokenizer, its special tokens and the chat template."""
        self._folder = folder
        self._tokenizer = _show_tool_calls(load_tokenizer(folder))
        self._template = load_chat_template(folder)
        self._special_tokens = load_special_tokens(folder)
        self.image_token_id: int | None = self._tokenizer.token_to_id(IMAGE_TOKEN)
        """Placeholder of one image embedding; None for a model without images."""
        self.video_token_id: int | None = self._tokenizer.token_to_id(VIDEO_TOKEN)
        """Placeholder of one video embedding; None for a model without videos."""
        self.think_end_id: int | None = self._tokenizer.token_to_id(THINK_END)
        """Token that ends the reasoning; None where `</think>` is not a single token."""
        self.tool_call_id: int | None = self._tokenizer.token_to_id(TOOL_CALL)
        """Token that opens a tool call; None where `<tool_call>` is not a single token."""
        self._reasoning_ends = {THINK_END: self.think_end_id, TOOL_CALL: self.tool_call_id}

    @property
    def vocabulary(self) -> dict[str, int]:
        """Tokens and their ids."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    @cached_property
    def _longest_token(self) -> int:
        """Most characters that a token stands for."""
        return max(map(len, self.vocabulary))

    def refuse_longer(self, text: str, tokens: int) -> None:
        """Raise TooLongError for a text that surely has more than so many tokens; none is made.

        Tokenizing a MiB takes a second and 150 MiB of memory.
        """
        if len(text) > tokens * self._longest_token:
            raise TooLongError(f"prompt: {len(text)} characters, too many for a context of {tokens} tokens; shorten it")

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer as tokenizer.json has it, without settings from training."""
        return self._tokenizer.to_str()

    def render(
        self, messages: str | Sequence[Message], *, tools: Sequence[Tool] = (), thinking: bool | None = False
    ) -> str:
        """Render a conversation, or a question alone, up to where the answer begins.

        thinking: None for what the template does where nobody says so.
        """
        if isinstance(messages, str):
            messages = user_turn(messages)
        given: dict[str, object] = {"tools": list(tools)} if tools else {}
        if thinking is not None:
            given["enable_thinking"] = thinking
        try:
            return self._template.compiled.render(
                **self._special_tokens,
                **given,
                messages=list(messages),
                add_generation_prompt=True,
            )
        except Exception as error:  # a template is code of the model's author and may raise anything
            raise InputError(f"{self._template.path}: cannot be rendered ({error})") from error

    def encode(
        self,
        messages: str | Sequence[Message],
        image_tokens: Sequence[int] = (),
        video_tokens: Sequence[int] = (),
        *,
        tools: Sequence[Tool] = (),
        thinking: bool = False,
        context: int | None = None,
    ) -> NDArray[np.int64]:
        """Token ids [T] int64 of a conversation, with `image_tokens[i]` placeholders for its i-th image, videos alike.

        messages: a text is a question that follows all images and videos. Texts are read in their `canonical` form,
        then by the tokenizer's own normalizer. As in transformers and vLLM, the rendered text is tokenized as a whole:
        a text that spells a control token, such as <|endofturn|>, is read as that token. So a server's users can write
        turns of others into their own messages, and whoever passes texts of others on must remove control tokens.
        Placeholders of images and videos are refused. Raises InputError for these, for a text that is surely longer
        than `context`, where the template has no placeholder for an image or video, and for a template that leaves out
        the tools or their calls.
        """
        if isinstance(messages, str):
            messages = user_turn(canonical_text(messages, "prompt"), len(image_tokens), len(video_tokens))
        else:
            messages = canonical_text(list(messages), "messages")
        tools = canonical_text(list(tools), "tools")
        rendered = self.render(messages, tools=tools, thinking=thinking)
        if context is not None:
            self.refuse_longer(rendered, context)
        self._refuse_ignored_tools(rendered, messages, tools, thinking)
        ids = np.array(self._ids(rendered), np.int64)
        repeats = np.ones_like(ids)
        for kind, placeholder, token_id, tokens in (
            ("image", IMAGE_TOKEN, self.image_token_id, image_tokens),
            ("video", VIDEO_TOKEN, self.video_token_id, video_tokens),
        ):
            is_placeholder = ids == (-1 if token_id is None else token_id)
            smuggled = token_id is not None and any(placeholder in text for text in texts([messages, tools]))
            self._check_count(kind, placeholder, int(is_placeholder.sum()), len(tokens), smuggled=smuggled)
            repeats[is_placeholder] = tokens
        return np.repeat(ids, repeats)

    def _check_count(self, kind: str, placeholder: str, count: int, wanted: int, *, smuggled: bool) -> None:
        """Raise InputError unless a prompt has as many placeholders as images or videos, none of them from a text."""
        if wanted and not count:
            raise InputError(f"{self._folder}: this model's chat template takes no {kind}s; ask without --{kind}")
        if smuggled or count > wanted:
            raise InputError(
                f"prompt: has {count} placeholders for {wanted} {kind}s, remove {placeholder} from the text"
            )
        if count < wanted:
            raise InputError(
                f"{self._folder}: this model's chat template shows {count} of {wanted} {kind}s; put them into messages "
                "of the user"
            )

    def _refuse_ignored_tools(
        self, rendered: str, messages: Sequence[Message], tools: Sequence[Tool], thinking: bool
    ) -> None:
        """Raise InputError for a template that renders the same without the tools, or without a past call of them."""
        if tools and self.render(messages, thinking=thinking) == rendered:
            raise InputError(f"{self._folder}: this model's chat template takes no tools; ask without them")
        called = any(message.get("tool_calls") for message in messages)
        if called and self.render(without_calls(messages), tools=tools, thinking=thinking) == rendered:
            raise InputError(f"{self._folder}: this model's chat template takes no tool calls; leave them out")

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text in its `canonical` form, such as an answer, without chat template."""
        return self._ids(canonical(text))

    def _ids(self, text: str) -> list[int]:
        # As a batch: other threads run meanwhile, and a server's tokens come from one of them.
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def encode_answer(self, answer: str, reasoning: str | None) -> list[int]:
        """Token ids of a known answer; of its reasoning before, where there is one, for a prompt with thinking.

        Raises InputError for reasoning that the template has no form for.
        """
        if reasoning is None:
            return self.encode_text(answer)
        open_prompt, closed_prompt = (self.render("", thinking=thinking) for thinking in (True, False))
        return self.encode_text(write_reasoning(self._template, open_prompt, closed_prompt, reasoning) + answer)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def decode_answer(self, ids: Sequence[int], *, thinking: bool) -> AnswerText:
        """Split generated ids into reasoning and answer.

        With thinking, the prompt ends after <think>: everything up to </think> or a tool call is reasoning, and
        everything is where both are missing.
        """
        ids = list(ids)
        if not thinking:
            return AnswerText("", self.decode(ids).strip())
        parser = self.parse_reasoning(ids)
        marker = parser.marker
        if marker is None:
            reasoning, answer = self.decode(ids), ""
        elif self._reasoning_ends[marker] is None:
            reasoning, _, answer = self.decode(ids).partition(marker)
        else:
            reasoning, answer = self.decode(ids[: parser.tokens]), self.decode(ids[parser.tokens + 1 :])
        if marker == TOOL_CALL:
            answer = TOOL_CALL + answer
        return AnswerText(reasoning.strip(), answer.strip())

    def parse_reasoning(self, ids: Sequence[int] = ()) -> ReasoningParser:
        """A parser of an answer with reasoning that begins with `ids`."""
        parser = ReasoningParser(self._reasoning_ends, self.stream().push)
        for token in ids:
            parser.push(token)
        return parser

    @cached_property
    def end_of_reasoning(self) -> ReasoningEnd:
        """What the template writes between the text of the reasoning and the answer.

        It is what a prompt without reasoning has more than one with it. Raises InputError for a template that writes no
        `</think>` there.
        """
        parts = reasoning_end(*(self.render("", thinking=thinking) for thinking in (True, False)))
        if parts is None:
            raise InputError(
                f"{self._folder}: its chat template does not show how reasoning ends; leave out --thinking-budget"
            )
        _, line, closing = parts
        tokens = tuple(self.encode_text(line)), tuple(self.encode_text(closing))
        return ReasoningEnd(*tokens, closing.removeprefix(THINK_END))

    @cached_property
    def can_think(self) -> bool:
        """Whether the template has prompts with reasoning and without."""
        return self.render("", thinking=True) != self.render("", thinking=False)

    @cached_property
    def thinks_by_default(self) -> bool:
        """Whether the template lets the model reason where nobody says so."""
        return self.can_think and self.render("", thinking=None) == self.render("", thinking=True)

    def stream(self) -> TextStream:
        """A decoder of ids one at a time."""
        return TextStream(self._tokenizer)

    def stream_answer(self, *, thinking: bool) -> AnswerTextStream:
        """A decoder of the ids of an answer one at a time."""
        return AnswerTextStream(self, thinking)


class TextStream:
    """Decodes ids one at a time; the pieces join to the text of `Chat.decode`.

    A character may take several tokens, such as a Hangul syllable in three bytes: its piece comes with the last one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._length = 0

    def push(self, token: int) -> str:
        """Text that `token` completes; "" inside a character and for a special token."""
        self._ids.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self._length += len(piece)
        return piece

    def finish(self) -> str:
        """Text left at the end: bytes of an incomplete character, shown as U+FFFD."""
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)[self._length :]


class AnswerTextStream:
    """Decodes an answer one id at a time; the pieces join to the text of `Chat.decode_answer`.

    With thinking, the reasoning comes first and a line `</think>` ends it, special token or not.
    """

    def __init__(self, chat: Chat, thinking: bool) -> None:
        self._chat = chat
        self._think_end = chat.think_end_id if thinking else None
        self._begin()

    def push(self, token: int) -> str:
        """Text that `token` completes; white space is held back until text follows, as an answer is stripped."""
        if token != self._think_end:
            return self._strip(self._text.push(token))
        shown = self.finish()
        self._think_end = None
        self._begin()
        return f"{shown}\n{THINK_END}\n\n"

    def finish(self) -> str:
        """Text left at the end."""
        return self._strip(self._text.finish())

    def _begin(self) -> None:
        self._text = self._chat.stream()
        self._begun, self._space = False, ""

    def _strip(self, piece: str) -> str:
        piece = self._space + piece if self._begun else piece.lstrip()
        shown = piece.rstrip()
        self._begun, self._space = self._begun or bool(shown), piece[len(shown) :]
        return shown


def _show_tool_calls(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, with the marks of tool calls as tokens that decoding does not skip: they are part of an answer."""
    marks = {TOOL_CALL, TOOL_CALL_END}
    if not any(token.special and token.content in marks for token in tokenizer.get_added_tokens_decoder().values()):
        return tokenizer
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] &= token["content"] not in marks
    return Tokenizer.from_str(json.dumps(content))
