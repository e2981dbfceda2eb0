"""Splits the tokens of an answer into text of its reasoning and text of the answer, as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from calib_data.document import THINK_END
from runtime.decoding.stop_strings import StopStrings
from runtime.reasoning import TOOL_CALL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.chat import Chat, TextStream


class Texts(NamedTuple):
    """Text that a token completes."""

    reasoning: str
    """Of the reasoning."""
    text: str
    """Of the answer."""


class AnswerText:
    """The text of one answer; the pieces join to those of `Chat.decode_answer`, of any tokenizer.

    White space around either part is left out, so it is held back until text follows. stop: texts that end the answer,
    which is then without them. They are searched before white space is held back, as they may consist of it.
    """

    def __init__(self, chat: Chat, *, thinking: bool, stop: Sequence[str] = ()) -> None:
        self._chat = chat
        self._begun, self._stop = False, StopStrings(stop)
        self._ends = {THINK_END: chat.think_end_id, TOOL_CALL: chat.tool_call_id}
        self._unseen = [text for text, token in self._ends.items() if token is None]
        self._in_reasoning = thinking
        self._stream: TextStream = chat.stream()
        self._reasoning, self._text = _Stripped(), _Stripped()
        self._tail = ""  # of the reasoning, which may begin a marker of several tokens

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stop.found

    def push(self, token: int) -> Texts:
        """Read the next token."""
        if not self._in_reasoning:
            return Texts("", self._answer(self._stream.push(token)))
        marker = next((text for text, known in self._ends.items() if known == token), None)
        if marker is not None:
            return self._end(self._tail + self._stream.finish(), marker, "")
        return self._search(self._tail + self._stream.push(token))

    def finish(self) -> Texts:
        """The text that is left at the end: bytes of an incomplete character, and what might have been a marker."""
        if self._in_reasoning:
            return Texts(self._reasoning.push(self._tail + self._stream.finish()), "")
        return Texts("", self._answer(self._stream.finish()) + self._text.push(self._stop.finish()))

    def _answer(self, piece: str) -> str:
        """Text of the answer that can be shown. White space at its end is part of it where a stop string follows."""
        piece = piece if self._begun else piece.lstrip()
        self._begun = self._begun or bool(piece)
        shown = self._text.push(self._stop.push(piece))
        return shown + self._text.finish() if self.stopped else shown

    def _search(self, text: str) -> Texts:
        """Find a marker of several tokens in text of the reasoning; hold back what may be the begin of one."""
        for marker in self._unseen:
            before, found, after = text.partition(marker)
            if found:
                return self._end(before, marker, after)
        keep = max((len(marker) - 1 for marker in self._unseen), default=0)
        cut = max(0, len(text) - keep)
        self._tail = text[cut:]
        return Texts(self._reasoning.push(text[:cut]), "")

    def _end(self, before: str, marker: str, after: str) -> Texts:
        """End the reasoning. A tool call belongs to the answer."""
        self._in_reasoning, self._tail = False, ""
        if self._ends[marker] is not None:
            self._stream = self._chat.stream()
        return Texts(self._reasoning.push(before), self._answer((marker if marker == TOOL_CALL else "") + after))


class _Stripped:
    """Leaves out white space at the begin and the end of a text that comes in pieces."""

    def __init__(self) -> None:
        self._begun, self._space = False, ""

    def push(self, piece: str) -> str:
        piece = self._space + piece if self._begun else piece.lstrip()
        shown = piece.rstrip()
        self._begun, self._space = self._begun or bool(shown), piece[len(shown) :]
        return shown

    def finish(self) -> str:
        """White space that was held back."""
        space, self._space = self._space, ""
        return space
