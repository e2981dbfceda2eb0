"""Structured output: an answer that matches a JSON schema, a regular expression, a choice or tool calls.

llguidance parses what was written so far and says which tokens may follow (Moskal et al. 2025, guidance-ai/llguidance).
All others get a logit of minus infinity before the sampler sees them.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from calib_data.document import THINK_END
from console.errors import InputError
from console.text import shorten
from runtime.decoding.thinking_budget import ThinkingBudget
from runtime.reasoning import TOOL_CALL, TOOL_CALL_END, ReasoningParser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llguidance import LLMatcher
    from numpy.typing import NDArray

    from runtime.chat import Chat
    from runtime.decoding.sampling import Sampler

# Of what JSON allows, one space or one line break with its indent: a model may write white space without end.
_JSON_OPTIONS = {"x-guidance": {"whitespace_pattern": r" |\n[ \t]{0,32}"}}
_NO_ARGUMENTS = {"properties": {}, "additionalProperties": False}
_LEXER_STATES = 50_000  # 1 to 2 KB each
_LONGEST_SOURCE = 256 << 10  # bytes; those of 1 MB compile for 15 s and take 0.1 s a token
# llguidance recurses through `$ref` and ends the process where the stack does. A byte of a schema takes up to 0.5 KB.
_STACK = (8 << 20) + (_LONGEST_SOURCE << 10)
_LONGEST_REASON = 300  # characters

_STARTING = threading.Lock()  # the size of a stack is a setting of all threads
Result = TypeVar("Result")

# What is added to the logits of eight tokens, for each value of the byte that has their bits.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ADDED = np.where(_BITS == 1, np.float32(0), np.float32(-np.inf))


class GrammarError(InputError):
    """A grammar turned out too complex while it was written."""


class GrammarTokenizer:
    """A model's tokenizer as llguidance reads it. Building it takes about a second: one for all requests."""

    def __init__(self, chat: Chat, vocabulary: int, end_ids: Sequence[int]) -> None:
        """Read the tokenizer.

        vocabulary: number of logits, which may be more than the tokenizer has tokens. end_ids: tokens that end an
        answer. Raises InputError where llguidance is not installed, or cannot read this tokenizer.
        """
        try:
            from llguidance import LLParserLimits, LLTokenizer
        except ModuleNotFoundError as error:
            raise InputError("structured output needs llguidance; run: pip install '.[serve]'") from error
        written, size = _without_gaps(chat.tokenizer_json)
        try:
            self.compiled = LLTokenizer(written, max(vocabulary, size), list(end_ids), LLTokenizer.json_slices())
        except ValueError as error:
            raise InputError(f"tokenizer.json: structured output cannot use it ({_reason(str(error))})") from error
        self.limits = LLParserLimits(verbose_errors=False, max_lexer_states=_LEXER_STATES)
        self.end_ids = tuple(end_ids)
        self.tool_call_marks = tuple(_mark(chat, text) for text in (TOOL_CALL, TOOL_CALL_END))
        """`<tool_call>` and `</tool_call>` in llguidance's Lark syntax."""


class Grammar:
    """What an answer must match, compiled for one tokenizer. All answers to a request share it."""

    def __init__(self, tokenizer: GrammarTokenizer, source: str, name: str, *, calls_tools: bool = False) -> None:
        """Compile a grammar in llguidance's own form. Raises InputError, which begins with `name`, where it cannot."""
        size = len(_utf8(source, name).encode())
        if size > _LONGEST_SOURCE:
            raise InputError(f"{name}: is too large ({size} bytes as a grammar, of at most {_LONGEST_SOURCE})")
        self._matcher, error = _in_deep_stack(lambda: _compile(tokenizer, source))
        if error:
            raise InputError(f"{name}: {_reason(error)}")
        self.tokenizer = tokenizer
        self.calls_tools = calls_tools
        """Whether the answer consists of tool calls."""

    @classmethod
    def json_schema(cls, tokenizer: GrammarTokenizer, schema: object, name: str = "JSON schema") -> Grammar:
        """A value that a JSON schema allows (draft 2020-12), with keys in the order of `properties`.

        Raises InputError for a schema that cannot be enforced: wrong, unsatisfiable, or with keywords that llguidance
        does not know. Keys under `additionalProperties` may be repeated, and any year has a 29 February.
        """
        return cls(tokenizer, f'{{"grammars": [{{"json_schema": {_schema_json(schema, name)}}}]}}', name)

    @classmethod
    def json_object(cls, tokenizer: GrammarTokenizer) -> Grammar:
        """Any JSON object."""
        return cls.json_schema(tokenizer, {"type": "object"})

    @classmethod
    def regex(cls, tokenizer: GrammarTokenizer, pattern: str) -> Grammar:
        """A text that a regular expression matches as a whole, in the syntax of Rust's regex crate."""
        return cls(tokenizer, _regex_grammar(pattern, "regular expression"), "regular expression")

    @classmethod
    def choice(cls, tokenizer: GrammarTokenizer, texts: Sequence[str]) -> Grammar:
        """One of several texts."""
        if not texts:
            raise InputError("choice: is empty; give at least one text")
        pattern = "|".join("".join(map(_literal_in_regex, _utf8(text, "choice"))) for text in texts)
        return cls(tokenizer, _regex_grammar(f"({pattern})", "choice"), "choice")

    @classmethod
    def tool_calls(
        cls, tokenizer: GrammarTokenizer, tools: Mapping[str, object | None], *, several: bool = True
    ) -> Grammar:
        """Calls of tools in the form of the chat template, one or, where `several`, more, each on a line.

        tools: JSON schema of the arguments by the tool's name; None for a tool without arguments.
        """
        if not tools:
            raise InputError("tools: is empty; give at least one tool")
        opened, closed = tokenizer.tool_call_marks
        calls = []
        for tool, schema in tools.items():
            name = f"tool {tool}: parameters"
            written = _schema_json(_arguments(schema), name)
            cls.json_schema(tokenizer, _arguments(schema), name)  # an error of the whole would not name the tool
            head = json.dumps({"name": tool, "arguments": 0}, ensure_ascii=False).removesuffix("0}")
            calls.append(f'{_literal_in_lark(head)} %json {written} "}}"')
        more = r' ("\n" call)*' if several else ""
        source = f"start: call{more}\ncall: {opened} ({' | '.join(calls)}) {closed}\n"
        return cls(tokenizer, source, "tools", calls_tools=True)

    def begin(self) -> LLMatcher:
        """A matcher of a new answer."""
        return self._matcher.deep_copy()


class Constraint:
    """Holds one answer to a grammar. Each answer has its own.

    It begins where the model's answers begin: after the reasoning, and what the chat template writes there. Its sampler
    raises InputError where no token can follow; only this answer is lost.
    """

    def __init__(self, grammar: Grammar, chat: Chat, *, thinking: bool) -> None:
        """Begin an answer.

        thinking: the prompt ends after `<think>`.
        """
        self._grammar, self._chat = grammar, chat
        self._matcher = grammar.begin()
        self._reasoning = chat.parse_reasoning() if thinking else None
        self._template: list[int] = []  # tokens that the template still writes before the answer
        self._read = 0
        words = -(-grammar.tokenizer.compiled.vocab_size // 32)
        self._allowed = np.zeros((1, words), np.int32)  # a bit for each token
        self._masked = np.zeros(words * 32, np.float32)

    def limit(self, sampler: Sampler, *, greedy: bool = False) -> Sampler:
        """A sampler that chooses as `sampler` does, among the tokens that may follow.

        greedy: `sampler` takes the largest logit, less a penalty. Then its choice among all tokens, where allowed, is
        its choice among the allowed ones, and no mask is made. Goes with a ThinkingBudget, inside it or around it.
        """
        reasoning = self._ending_in_an_answer(sampler) if self._reasoning is not None else sampler

        def choose(logits: NDArray[np.float32], generated: Sequence[int]) -> int:
            self._catch_up(generated)
            if self._in_reasoning():
                return reasoning(logits, generated)
            forced = self._template or self._matcher.compute_ff_tokens()
            return forced[0] if forced else self._choose(sampler, logits, generated, greedy=greedy)

        return choose

    def _ending_in_an_answer(self, sampler: Sampler) -> Sampler:
        """A sampler for the reasoning, which neither the end of the turn nor a tool call ends without an answer."""
        chat, ends = self._chat, list(self._grammar.tokenizer.end_ids)
        parser = chat.parse_reasoning()
        if not self._grammar.calls_tools:
            parser = ReasoningParser({THINK_END: chat.think_end_id}, chat.stream().push)
            ends += [] if chat.tool_call_id is None else [chat.tool_call_id]
        return ThinkingBudget(sys.maxsize, chat.end_of_reasoning, parser, ends).limit(sampler)

    def _in_reasoning(self) -> bool:
        return self._reasoning is not None and self._reasoning.marker is None

    def _catch_up(self, generated: Sequence[int]) -> None:
        """Read the tokens that are new; `generated` only grows from call to call."""
        for token in generated[self._read :]:
            if self._reasoning is not None and self._reasoning.marker is None:
                self._reasoning.push(token)
                self._end_reasoning(self._reasoning, token)
            elif self._template:
                self._read_template(token)
            else:
                self._consume([token])
        self._read = len(generated)

    def _end_reasoning(self, reasoning: ReasoningParser, token: int) -> None:
        if reasoning.marker == THINK_END:
            self._template = self._chat.encode_text(self._chat.end_of_reasoning.text)
            self._read_text(reasoning.after)
        elif reasoning.marker == TOOL_CALL:
            if not self._grammar.calls_tools:
                raise InputError("structured output: the model called a tool instead; ask again without reasoning")
            single = reasoning.ends_with(token)
            self._consume([token] if single else self._chat.encode_text(TOOL_CALL + reasoning.after))

    def _read_template(self, token: int) -> None:
        """Read a token after the reasoning; a ThinkingBudget may divide the same text otherwise."""
        if token == self._template[0]:
            self._template = self._template[1:]
        else:
            self._read_text(self._chat.decode([token]))

    def _read_text(self, piece: str) -> None:
        """Read text after the reasoning. Where it goes on into the answer, the matcher reads that part."""
        expected = self._chat.decode(self._template)
        if expected.startswith(piece):
            self._template = self._chat.encode_text(expected[len(piece) :]) if piece else self._template
            return
        self._template = []
        self._consume(self._chat.encode_text(piece.removeprefix(expected).lstrip()))

    def _consume(self, tokens: list[int]) -> None:
        if tokens and not self._matcher.consume_tokens(tokens):
            self._fail("the answer left the grammar")

    def _choose(self, sampler: Sampler, logits: NDArray[np.float32], generated: Sequence[int], *, greedy: bool) -> int:
        if greedy:
            chosen = sampler(logits, generated)
            if self._matcher.validate_tokens([chosen]) == 1:
                return chosen
        self._fill()
        return sampler(self._mask(logits), generated)

    def _fill(self) -> None:
        """Find the tokens that may follow; the end tokens once the grammar is complete."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._allowed)
        if self._matcher.is_error():
            self._fail("no token can follow")

    def _mask(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [V], minus infinity where a token may not follow; valid until the next call."""
        masked = self._masked
        np.take(_ADDED, self._allowed.view(np.uint8)[0], axis=0, out=masked.reshape(-1, 8), mode="clip")
        return np.add(logits, masked[: len(logits)], out=masked[: len(logits)])

    def _fail(self, problem: str) -> None:
        reason = _reason(self._matcher.get_error())
        raise GrammarError(f"structured output: {problem} ({reason}); use a simpler schema or expression")


def _compile(tokenizer: GrammarTokenizer, source: str) -> tuple[LLMatcher, str]:
    """A matcher, and what is wrong with the grammar, if anything."""
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer.compiled, source, log_level=0, limits=tokenizer.limits)
    first = matcher.deep_copy()  # its mask finds more errors, and what it computes the copies share
    first.compute_bitmask()
    return matcher, first.get_error() if first.is_error() else ""


def _in_deep_stack(work: Callable[[], Result]) -> Result:
    """Run work in a thread with a stack for the deepest grammar; only what is used of it becomes memory."""
    with ThreadPoolExecutor(1, "grammar") as pool:
        with _STARTING:
            before = threading.stack_size(_STACK)
            try:
                done = pool.submit(work)
            finally:
                threading.stack_size(before)
        return done.result()


def _without_gaps(tokenizer_json: str) -> tuple[str, int]:
    """A tokenizer in which each id up to the largest has a token, as llguidance expects; and their number."""
    tokenizer = json.loads(tokenizer_json)
    vocabulary = tokenizer["model"]["vocab"]
    used = {token["id"] for token in tokenizer["added_tokens"]}
    if isinstance(vocabulary, dict):  # else a list, which has no gaps
        used.update(vocabulary.values())
        for gap in sorted(set(range(max(used))) - used):
            filler = f"<|gap_{gap}|>"
            vocabulary[filler] = gap
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            tokenizer["added_tokens"].append({"id": gap, "content": filler, **flags, "special": True})
    return json.dumps(tokenizer, ensure_ascii=False), max(*used, len(vocabulary) - 1) + 1


def _mark(chat: Chat, text: str) -> str:
    """A mark of tool calls in Lark syntax: its token, or its text where it takes several."""
    ids = chat.encode_text(text)
    return f"<[{ids[0]}]>" if len(ids) == 1 else _literal_in_lark(text)


def _schema_json(schema: object, name: str) -> str:
    if not isinstance(schema, dict):
        raise InputError(f"{name}: must be a JSON object")
    try:
        return json.dumps(schema | _JSON_OPTIONS, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: is not JSON ({error})") from error


def _arguments(schema: object | None) -> object:
    """The schema of a tool's arguments, which are always an object."""
    if schema is None:
        schema = _NO_ARGUMENTS
    return {"type": "object", **schema} if isinstance(schema, dict) else schema


def _regex_grammar(pattern: str, name: str) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(_utf8(pattern, name))


def _utf8(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: is not valid Unicode, it has half of a surrogate pair") from error
    return text


def _literal_in_regex(character: str) -> str:
    return character if character.isalnum() else f"\\x{{{ord(character):x}}}"


def _literal_in_lark(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _reason(message: str) -> str:
    """The line of llguidance's message that says what is wrong."""
    found = re.search(r"^error: (.+)$", message, re.MULTILINE)
    return shorten(found[1] if found else message.strip().partition("\n")[0], _LONGEST_REASON)
