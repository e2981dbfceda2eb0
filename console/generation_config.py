"""generation_config.json: the end tokens and recommended sampling of a model folder, checked in one place.

All commands read it here, so that a wrong value ends a command before hours of work. Names and defaults are those of
transformers' GenerationConfig.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from console.files import read_object
from console.text import short_repr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

FILE = "generation_config.json"

_TOKEN_IDS = ("eos_token_id", "pad_token_id", "bos_token_id")

# Fields that `generate` uses, and one that only has to be sound: what they may be, and how to say so.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "do_sample": (lambda value: isinstance(value, bool), "true or false"),
    "temperature": (lambda value: _is_number(value) and value >= 0, "a number, 0 (greedy) or more"),
    "top_k": (lambda value: type(value) is int and value >= 0, "a whole number, 0 (off) or more"),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
    "presence_penalty": (lambda value: _is_number(value) and -2 <= value <= 2, "a number between -2 and 2"),
    "repetition_penalty": (lambda value: _is_number(value) and value > 0, "a number above 0 (1 is off)"),
}
_USED = {"do_sample", "temperature", "top_k", "top_p", "presence_penalty", "max_new_tokens", *_TOKEN_IDS}

# Fields that change no token of a decoder's only answer: caches, exact drafting, settings of beams (`num_beams` itself
# is named), what transformers returns, and where the file comes from.
_HARMLESS = {
    *("use_cache", "cache_config", "max_cache_len", "compile_config", "disable_compile", "prefill_chunk_size"),
    *("continuous_batching_config", "low_memory", "use_mtp", "is_assistant", "num_assistant_tokens"),
    *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_early_exit"),
    *("assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
    *("speculation_type", "early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
    *("renormalize_logits", "remove_invalid_values", "decoder_start_token_id"),
    *("transformers_version", "_from_model_config", "_commit_hash"),
}

# Values that turn off a field which is not supported. None turns off any field.
_OFF: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p", "guidance_scale"), (1,)),
    **dict.fromkeys(("num_beams", "num_return_sequences"), (1,)),
    **dict.fromkeys(("min_length", "min_new_tokens", "min_p", "penalty_alpha"), (0,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), (0, 1)),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"), ([],)),
    **dict.fromkeys(("sequence_bias", "stop_strings", "force_words_ids", "constraints"), ([], {}, "")),
    "token_healing": (False,),
    # All kinds of cache but "quantized" hold the same numbers.
    "cache_implementation": ("dynamic", "static", "offloaded", "offloaded_static", "sliding_window", "hybrid", "paged"),
}


@dataclass(frozen=True)
class GenerationConfig:
    """What a model folder says about generating, checked."""

    path: Path
    """generation_config.json, whether there is one or not."""
    values: Mapping[str, Any]
    """Its fields; none where there is no such file."""
    end_ids: list[int]
    """Tokens that end an answer; the first ends a turn."""

    @property
    def unsupported(self) -> list[str]:
        """Fields that would change an answer of transformers and change none here, such as "min_p 0.1"."""
        return [_describe(name, value) for name, value in self.values.items() if _is_unsupported(name, value)]

    def without_effect(self, used: Mapping[str, object]) -> str | None:
        """One line that names the fields without effect; None where there are none.

        used: what is used instead of some fields, by their names.
        """
        unused = [
            _describe(name, self.values[name])
            for name, value in used.items()
            if self.values.get(name) not in (None, value)
        ]
        parts = {"ignored, not supported": self.unsupported, "not used": unused}
        said = "; ".join(f"{what}: {', '.join(fields)}" for what, fields in parts.items() if fields)
        return f"{self.path}: {said}" if said else None


def read_generation_config(folder: Path, vocab_size: int) -> GenerationConfig:
    """Read a folder's generation_config.json, and config.json for end tokens that it lacks.

    vocab_size: tokens that the model has. Raises InputError for a value of another kind or out of its range, and where
    no file names an end token.
    """
    path = folder / FILE
    values = read_object(path) if path.exists() else {}
    for name in _TOKEN_IDS:
        _token_ids(path, name, values.get(name), vocab_size)
    for name, (is_possible, expected) in _RANGES.items():
        value = values.get(name)
        if value is not None and not is_possible(value):
            raise InputError(f"{path}: {name} is {short_repr(value)}; write {expected}")
    return GenerationConfig(path, values, _end_ids(folder, values, vocab_size))


def _end_ids(folder: Path, values: Mapping[str, Any], vocab_size: int) -> list[int]:
    """eos_token_id, searched in the files that transformers searches."""
    path = folder / "config.json"
    config = read_object(path) if path.exists() else {}
    text = config.get("text_config")
    for file, settings in ((folder / FILE, values), (path, config), (path, text if isinstance(text, dict) else {})):
        if ids := _token_ids(file, "eos_token_id", settings.get("eos_token_id"), vocab_size):
            return ids
    raise InputError(f"{folder / FILE}: has no eos_token_id, nor has config.json, so no answer would end; add it")


def _token_ids(path: Path, name: str, value: object, vocab_size: int) -> list[int]:
    """A field's token ids; none where it is not set. Raises InputError for anything but ids of the vocabulary."""
    ids: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    possible = all(type(token) is int and 0 <= token < vocab_size for token in ids)
    if value == [] or not possible or (isinstance(value, list) and name != "eos_token_id"):
        expected = "a token id, or a list of them" if name == "eos_token_id" else "a token id"
        raise InputError(f"{path}: {name} is {short_repr(value)}; write {expected}, from 0 to {vocab_size - 1}")
    return ids


def _is_unsupported(name: str, value: object) -> bool:
    if value is None or name in _USED or name in _HARMLESS:
        return False
    return value not in _OFF.get(name, ())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _describe(name: str, value: object) -> str:
    """A field with its value, where that is short."""
    return name if isinstance(value, list | dict) else f"{name} {short_repr(value)}"
