"""Architecture, tokenizer and processor of the bundled reader: everything of its folder except the weights.

The architecture is EXAONE 4.5's at a size that two CPU cores can train: the same layer kinds, special ids, names and
prompt format, every linear width a multiple of 128. Changing anything here makes committed weights unusable.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from calib_data.rendered.vocabulary import HANGUL

if TYPE_CHECKING:
    from pathlib import Path

SPECIAL = {
    0: "[PAD]", 1: "[BOS]", 2: "[EOS]", 3: "[UNK]", 50: "<|system|>", 51: "<|user|>", 52: "<|assistant|>",
    53: "<|endofturn|>", 67: "<|image_pad|>", 68: "<|video_pad|>", 71: "<think>", 72: "</think>", 73: "<vision>",
    74: "</vision>",
}  # fmt: skip
FIRST_BYTE = 80
VOCABULARY = 512

_LAYERS = ["sliding_attention", "full_attention"] * 2
_ROPE = {
    "rope_type": "llama3", "rope_theta": 1000000, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "architectures": ["Exaone4_5_ForConditionalGeneration"],
    "model_type": "exaone4_5",
    "dtype": "float16",
    "image_token_id": 67,
    "video_token_id": 68,
    "vision_start_token_id": 73,
    "vision_end_token_id": 74,
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "exaone4",
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": len(_LAYERS),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-05,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 53,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "sliding_window": 64,
        "sliding_window_pattern": "LG",
        "layer_types": _LAYERS,
        "num_nextn_predict_layers": 1,
        "rope_parameters": _ROPE,
    },
    "vision_config": {
        "model_type": "exaone4_5_vision",
        "depth": 4,
        "hidden_size": 128,
        "hidden_act": "silu",
        "intermediate_size": 384,
        "num_heads": 4,
        "num_key_value_heads": 2,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
        "out_hidden_size": 256,
    },
}
# Greedy: one token a character, so the released model's presence penalty would forbid repeating a letter.
GENERATION = {"bos_token_id": 1, "eos_token_id": 53, "pad_token_id": 0, "do_sample": False}
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Exaone4_5_Processor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 3136, "longest_edge": 3211264},
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
}
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "[BOS]",
    "eos_token": "<|endofturn|>",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 32768,
    "padding_side": "left",
}


def config_dict() -> dict[str, Any]:
    """config.json; a copy, since transformers edits the dictionaries that it is given."""
    return copy.deepcopy(CONFIG)


def tokenizer() -> Tokenizer:
    """Byte-level BPE whose only merges build the syllables of `vocabulary.HANGUL` and the won sign."""
    symbols = _byte_symbols()
    names = {index: f"<|reserved_{index}|>" for index in range(FIRST_BYTE)} | SPECIAL
    vocabulary = {symbols[byte]: FIRST_BYTE + byte for byte in range(256)}
    merges: list[tuple[str, str]] = []
    for char in HANGUL + "₩":
        first, second, third = (symbols[byte] for byte in char.encode())
        for left, right in ((first, second), (first + second, third)):
            if left + right not in vocabulary:
                vocabulary[left + right] = FIRST_BYTE + len(vocabulary)
                merges.append((left, right))
    unused = range(FIRST_BYTE + len(vocabulary), VOCABULARY)
    names |= {index: f"<|reserved_{index}|>" for index in unused}
    bpe = models.BPE(vocabulary | {name: index for index, name in names.items()}, merges)
    result = Tokenizer(bpe)
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(names[i], normalized=False, special=True) for i in sorted(names)])
    return result


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes (Radford et al. 2019), the alphabet of every byte-level BPE."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(others)) for byte in range(256)]


def write(folder: Path) -> None:
    """Write every file of the reader except model.safetensors, the chat template and the model card."""
    files = {
        "config.json": CONFIG, "generation_config.json": GENERATION, "preprocessor_config.json": PROCESSOR,
        "tokenizer_config.json": TOKENIZER,
    }  # fmt: skip
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tokenizer().save(str(folder / "tokenizer.json"))
