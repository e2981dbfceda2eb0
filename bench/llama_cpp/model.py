"""An EXAONE 4 text model of 220 M random weights, and our quantized and exported folder of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.process import run
from bench.scale.folders import make_checkpoint
from calib_data import READER
from console.files import read_object
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import find_family
from runtime.ort.manifest import FILE

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = 12


def config() -> dict[str, Any]:
    """The raw config.json of the model.

    No sliding window, as in EXAONE 4.0 1.2B: llama.cpp gives this architecture one at 64 layers only. Tokenizer and
    special tokens are the bundled reader's.
    """
    special = read_object(READER / "config.json")["text_config"]
    return {
        "architectures": ["Exaone4ForCausalLM"],
        "model_type": "exaone4",
        "dtype": "bfloat16",
        "vocab_size": 32768,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": LAYERS,
        "layer_types": ["full_attention"] * LAYERS,
        "sliding_window": None,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "rms_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        **{key: special[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }


def checkpoint(cache: Path) -> Path:
    """The folder of the 16-bit checkpoint; made if it is missing."""
    folder = cache / "exaone4"
    if not folder.exists():
        make_checkpoint(config(), folder)
    return folder


def exported(cache: Path, head_bits: int, kv_bits: int = 16) -> Path:
    """The folder of the 4-bit model with graphs for the CPU; made with the commands if it is missing.

    RTN is enough: the speed does not depend on the codes.
    """
    source, name = checkpoint(cache), f"exaone4-w4-head{head_bits}"
    folder = cache / (name if kv_bits == 16 else f"{name}-kv{kv_bits}")
    if not folder.exists():
        options = ["--model", str(source), "--output", str(folder), "--solver", "rtn", "--head-bits", str(head_bits)]
        run("quantize", *options, "--count", "1", "--reference", "0")
    if not (folder / FILE).exists():
        run("export", "--model", str(folder), "--kv-bits", str(kv_bits))
    return folder


def weight_bytes(folder: Path) -> int:
    """Bytes of the stored weights that a step reads: every tensor but the embeddings."""
    opened = open_checkpoint(folder)
    embeddings = f"{find_family(opened.config).embeddings}.weight"
    return sum(tensor.nbytes for name, tensor in opened.tensors.items() if name != embeddings)
