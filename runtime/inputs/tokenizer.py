"""The tokenizer of a model folder: tokenizer.json, and the special tokens that chat templates use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from console.errors import InputError
from console.files import read_object, read_text

if TYPE_CHECKING:
    from pathlib import Path

FILE = "tokenizer.json"
_OTHERS = ("tokenizer.model", "vocab.json", "merges.txt", "tiktoken.model", "tekken.json")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load tokenizer.json. Raises InputError where it is missing or broken, other tokenizer files or not."""
    path = folder / FILE
    others = [name for name in _OTHERS if (folder / name).exists()]
    if others and not path.exists():
        raise InputError(
            f"{path}: no such file, and {', '.join(others)} cannot be read instead; write it with transformers: "
            f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    text = read_text(path)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{path}: is not a tokenizer that can be read ({error})") from error
    # The file may hold settings from training.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_special_tokens(folder: Path) -> dict[str, str]:
    """Special tokens by name, such as bos_token, which templates may use.

    Those of special_tokens_map.json count, unless tokenizer_config.json lists all added tokens, as in transformers.
    """
    config, special = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    tokens = read_object(config) if config.exists() else {}
    if special.exists() and "added_tokens_decoder" not in tokens:
        tokens |= read_object(special)
    tokens = {name: value for name, value in tokens.items() if name.endswith("_token")}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str)}
