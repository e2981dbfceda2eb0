"""The work of structured output for a token: an invoice as JSON, with a synthetic tokenizer of any size.

Its tokens are random words, of which a few hold punctuation, as in tokenizers of language models.
"""

from __future__ import annotations

import shutil
import tempfile
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from calib_data import READER
from runtime.chat import Chat
from runtime.decoding.structured import Constraint, Grammar, GrammarTokenizer
from runtime.inputs.chat_template import TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from runtime.decoding.sampling import Sampler

_LETTERS = "etaoinshrdlcumwfgypbvkxqjzETAOINSHRDLC"
_PUNCTUATION = '0123456789"{}[]:,._-'
_LONGEST = 8  # characters of a token
_END = "<|endofturn|>"
_LINE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 80},
        "price": {"type": "number"},
        "count": {"type": "integer", "minimum": 1},
    },
    "required": ["name", "price", "count"],
    "additionalProperties": False,
}
INVOICE = {
    "type": "object",
    "properties": {
        "vendor": {"type": "string"},
        "date": {"type": "string", "format": "date"},
        "currency": {"enum": ["EUR", "KRW", "USD"]},
        "lines": {"type": "array", "items": _LINE},
        "total": {"type": "number"},
    },
    "required": ["vendor", "date", "currency", "lines", "total"],
    "additionalProperties": False,
}
ANSWER = (
    '{"vendor": "Kaufhaus am Markt, Berlin (Mitte)", "date": "2026-11-02", "currency": "EUR", "lines": ['
    '{"name": "coffee beans, roasted", "price": 12.5, "count": 3}, {"name": "filter paper no. 4", "price": 2.25, '
    '"count": 10}], "total": 60.0}'
)


def mask_work(vocabulary: int, logits: NDArray[np.float32]) -> tuple[Callable[[], object], int]:
    """A whole answer held to a JSON schema, and its number of tokens; the sampler knows the answer."""
    with tempfile.TemporaryDirectory() as folder:
        chat = Chat(_write_folder(Path(folder), vocabulary))
    end = chat.vocabulary[_END]
    grammar = Grammar.json_schema(GrammarTokenizer(chat, vocabulary, (end,)), INVOICE)

    def choose(logits: NDArray[np.float32], generated: Sequence[int]) -> int:  # noqa: ARG001
        rest = ANSWER[len(chat.decode(generated)) :]
        return chat.encode_text(rest)[0] if rest else end

    def write(pick: Sampler) -> list[int]:
        sampler, rows, tokens = Constraint(grammar, chat, thinking=False).limit(pick), cycle(logits), list[int]()
        while not tokens or tokens[-1] != end:
            tokens.append(sampler(next(rows), tokens))
        return tokens

    def repeat(logits: NDArray[np.float32], generated: Sequence[int]) -> int:  # noqa: ARG001
        return known[len(generated)]

    known = write(choose)
    assert chat.decode(known) == ANSWER
    return lambda: write(repeat), len(known)


def _write_folder(folder: Path, vocabulary: int) -> Path:
    tokenizer = _tokenizer(vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    shutil.copy(READER / TEMPLATE, folder)
    return folder


def _tokenizer(vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer whose tokens join two shorter ones at random."""
    random = np.random.default_rng(0)
    known = {text: index for index, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    parts, merges = [*_LETTERS * 4, *_PUNCTUATION, "Ġ"], list[tuple[str, str]]()
    while len(known) < vocabulary - 1:
        for first, second in random.integers(0, len(parts), (4096, 2)).tolist():
            pair = parts[first], parts[second]
            joined = "".join(pair)
            if joined not in known and len(joined) <= _LONGEST and len(known) < vocabulary - 1:
                known[joined] = len(known)
                merges.append(pair)
                if len(joined) <= _LONGEST // 2:
                    parts.append(joined)
    tokenizer = Tokenizer(models.BPE(known, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_END, normalized=False)])
    return tokenizer
