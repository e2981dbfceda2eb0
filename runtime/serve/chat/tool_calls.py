"""Finds the tool calls in an answer's text while it comes: `<tool_call>{"name": "f", "arguments": {…}}</tool_call>`."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any, NoReturn

from runtime.reasoning import TOOL_CALL, TOOL_CALL_END

_LONGEST_HEAD = 1024  # characters up to the arguments; of a call with more of them, name and arguments come at its end
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)', re.DOTALL)


@dataclass(frozen=True)
class Content:
    """Text outside of calls."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """The begin of a call."""

    index: int
    """Number of the call, from 0."""
    id: str
    """Unique, such as call_0f3a…."""
    name: str
    """The tool."""


@dataclass(frozen=True)
class Arguments:
    """The next piece of a call's arguments; the pieces join to the JSON object as the model wrote it."""

    index: int
    text: str


@dataclass(frozen=True)
class CallDropped:
    """A call that broke off or is no JSON after its arguments began; its whole text follows as content."""

    index: int


Delta = Content | CallStarted | Arguments | CallDropped


class ToolCallParser:
    """Splits the text of one answer, pushed in pieces of any length, into content and calls.

    The deltas do not depend on how the text is cut, but for where `Content` and `Arguments` are. What looks like a call
    and is none is content: nothing is lost but white space in front of a call and between the last call and the end.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._text = ""  # not delivered yet: white space, and what may begin a call
        self._call: _Call | None = None
        self._space = ""  # in front of the open call
        self._called = False  # nothing but white space since the last call

    def push(self, text: str) -> list[Delta]:
        """Read the next piece of the text."""
        deltas: list[Delta] = []
        rest: str | None = text
        while rest is not None:
            rest = self._read_call(rest, deltas) if self._call else self._read_text(rest, deltas)
        return deltas

    def finish(self) -> list[Delta]:
        """Read the end of the text."""
        deltas: list[Delta] = []
        while self._call:
            self._call.broken = True
            rest = self._read_call("", deltas)
            while rest is not None:
                rest = self._read_call(rest, deltas) if self._call else self._read_text(rest, deltas)
        if self._text and not (self._called and self._text.isspace()):
            deltas.append(Content(self._text))
        self._text = ""
        return deltas

    def _read_text(self, text: str, deltas: list[Delta]) -> str | None:
        """Deliver text up to a call. Returns what follows the call's tag; None where there is none."""
        before, tag, rest = (self._text + text).partition(TOOL_CALL)
        kept = len(before) if tag else len(before) - _begun(before, TOOL_CALL)
        shown = before[:kept].rstrip()
        if shown:
            deltas.append(Content(shown))
            self._called = False
        self._text = before[len(shown) :]
        if not tag:
            return None
        self._space, self._text, self._call = self._text, "", _Call()
        return rest

    def _read_call(self, text: str, deltas: list[Delta]) -> str | None:
        """Read on in the open call. Returns what follows it; None where it goes on."""
        call = self._call
        assert call is not None
        piece = call.read(text)
        if call.name is not None and call.index is None:
            call.index = self._calls
            self._calls += 1
            deltas.append(CallStarted(call.index, f"call_{secrets.token_hex(12)}", call.name))
        if piece and call.index is not None:
            deltas.append(Arguments(call.index, piece))
        if not call.ended and not call.broken:
            return None
        self._call = None
        if call.ended and (parsed := _parse(call.body)) is not None:
            self._called = True
            if call.index is None:
                deltas += [CallStarted(self._calls, f"call_{secrets.token_hex(12)}", parsed[0])]
                deltas += [Arguments(self._calls, parsed[1])]
                self._calls += 1
            return call.rest
        return self._give_back(call, deltas)

    def _give_back(self, call: _Call, deltas: list[Delta]) -> str:
        """Deliver the text of a broken call, up to the first end tag. Returns what follows that."""
        if call.index is not None:
            deltas.append(CallDropped(call.index))
        whole = call.body + (TOOL_CALL_END if call.ended else "") + call.rest
        body, tag, rest = whole.partition(TOOL_CALL_END)
        deltas.append(Content(self._space + TOOL_CALL + body + tag))
        self._called = False
        return rest


class _Call:
    """What has come of one call."""

    def __init__(self) -> None:
        self.name: str | None = None
        """The tool, once the arguments have begun."""
        self.index: int | None = None
        """Number of the call, once it has been delivered."""
        self.body = ""
        """Text between the tags."""
        self.rest = ""
        """Text after the call."""
        self.ended = self.broken = False
        self._depth, self._string, self._escape = 0, False, False
        self._read = 0  # characters that have been scanned
        self._arguments = False  # whether the next character is inside the arguments

    def read(self, text: str) -> str:
        """Read on. Returns what has come of the arguments."""
        self.body += text
        piece = ""
        if self.name is None and not self.broken and len(self.body) - len(text) < _LONGEST_HEAD:
            self._find_name()
        if self._arguments and not self.broken:
            piece = self._scan_arguments()
        if not self._arguments and not self.broken:
            self._find_end()
        return piece

    def _find_name(self) -> None:
        end = self.body.find(TOOL_CALL_END)
        head = _HEAD.match(self.body, 0, min(end if end >= 0 else len(self.body), _LONGEST_HEAD))
        try:
            name = json.loads(head[1]) if head else None
        except ValueError:  # a bad escape: the end tag will come
            return
        if head and isinstance(name, str):
            self.name, self._read, self._arguments = name, head.end(), True

    def _scan_arguments(self) -> str:
        """Read on to the brace that closes the arguments."""
        start = self._read
        for at in range(start, len(self.body)):
            character = self.body[at]
            if self._string:
                if character < " ":  # no JSON: a quotation mark is missing
                    self.broken = True
                    self._read = at
                    return self.body[start:at]
                self._string = self._escape or character != '"'
                self._escape = character == "\\" and not self._escape
            elif character == '"':
                self._string = True
            else:
                self._depth += (character in "{[") - (character in "}]")
            if not self._depth:
                self._read, self._arguments = at + 1, False
                return self.body[start : at + 1]
        self._read = len(self.body)
        return self.body[start:]

    def _find_end(self) -> None:
        end = self.body.find(TOOL_CALL_END, self._read)
        if end >= 0:
            self.body, self.rest, self.ended = self.body[:end], self.body[end + len(TOOL_CALL_END) :], True
        else:
            self._read = max(self._read, len(self.body) - len(TOOL_CALL_END) + 1)


def _parse(body: str) -> tuple[str, str] | None:
    """Name and arguments of a call, arguments as JSON; None for what is no call."""
    try:
        call = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments: Any = call.get("arguments", {})
    return (call["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _begun(text: str, tag: str) -> int:
    """Length of the text's end that may begin a tag."""
    return next((length for length in range(len(tag) - 1, 0, -1) if text.endswith(tag[:length])), 0)
