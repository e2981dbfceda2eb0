"""Log probabilities of tokens in OpenAI's form: each token with its text and its bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.decoding.logprobs import TokenLogprobs
    from runtime.decoding.structured import GrammarTokenizer

_LEAST = -9999.0  # JSON has no infinity


def token_logprobs(tokenizer: GrammarTokenizer, logprobs: TokenLogprobs) -> dict[str, Any]:
    """The log probability of a token, and of the likeliest tokens in its place."""
    top = [_entry(tokenizer, token, logprob) for token, logprob in logprobs.top]
    return _entry(tokenizer, logprobs.token, logprobs.logprob) | {"top_logprobs": top}


def _entry(tokenizer: GrammarTokenizer, token: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.compiled.decode_bytes([token])
    return {"token": data.decode(errors="replace"), "logprob": max(logprob, _LEAST), "bytes": list(data)}
