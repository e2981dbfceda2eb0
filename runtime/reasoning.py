"""Finds where the reasoning of an answer ends, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"


class ReasoningEnd(NamedTuple):
    """What the chat template writes between the text of the reasoning and the answer."""

    line: tuple[int, ...]
    """Tokens of the line break before `</think>`, where the template has one."""
    marker: tuple[int, ...]
    """Tokens from `</think>` on."""
    text: str
    """Text after `</think>`."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.line) + len(self.marker)


class ReasoningParser:
    """Follows the tokens of one answer whose prompt ends after `<think>`.

    Reasoning ends at `</think>`, and where a tool call opens.
    """

    def __init__(self, markers: Mapping[str, int | None], decode: Callable[[int], str]) -> None:
        """Begin an answer.

        markers: the token of each text that ends reasoning; None where it takes several tokens, and is found in the
        text. decode: the text that each next token completes.
        """
        self._markers, self._decode = markers, decode
        self._longest = max(map(len, markers))
        self._tail = ""
        self._lengths: list[int] = []  # characters that each token completed
        self.tokens = 0
        """Tokens of reasoning so far."""
        self.marker: str | None = None
        """What ended the reasoning; None before."""
        self.after = ""
        """Text after the marker in the token that completed it."""

    @property
    def at_line_start(self) -> bool:
        """Whether the reasoning so far ends with a line break."""
        return self._tail.endswith("\n")

    def push(self, token: int) -> None:
        """Read the next token; those after the reasoning count for nothing."""
        if self.marker is not None:
            return
        self.marker = next((text for text, known in self._markers.items() if known == token), None)
        if self.marker is not None:
            return
        piece = self._decode(token)
        self._tail = self._tail[-self._longest :] + piece
        self._lengths.append(len(piece))
        self.tokens += 1
        for text, known in self._markers.items():
            if known is None and text in self._tail:
                self.marker = text
                self.after = self._tail.partition(text)[2]
                self._leave_out(len(self._tail) - self._tail.index(text))

    def ends_with(self, token: int) -> bool:
        """Whether a token ends the reasoning by itself."""
        return token in self._markers.values()

    def _leave_out(self, characters: int) -> None:
        """Take the last tokens off that wrote these characters."""
        while characters > 0:
            self.tokens -= 1
            characters -= self._lengths[self.tokens]
