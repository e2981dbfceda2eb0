"""Run llama.cpp in an environment of its own. Imports nothing of this project.

    peer.py convert CHECKPOINT GGUF HEAD        bfloat16 checkpoint to Q4_0; HEAD: type of the output tensor, or default
    peer.py run GGUF THREADS SEQUENCES UNIFIED  prints a line about itself, then answers each line [prompts, tokens]

SEQUENCES: most prompts of a line, which are answered together. UNIFIED: 1 if they share one KV buffer, else 0. All
lines are JSON. It uses the C interface, so that Python costs as much as ours: one call a step, one argmax a token.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import llama_cpp
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Q4_0_FILE = 2  # llama_ftype
CONTEXT = 512


def tensors(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the tensors of a bfloat16 safetensors file as float32."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        assert entry["dtype"] == "BF16", name
        begin, end = entry["data_offsets"]
        raw = np.memmap(path, "<u2", "r", 8 + length + begin, ((end - begin) // 2,))
        yield name, (raw.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def convert(checkpoint: Path, output: Path, head: str) -> None:
    """Write a checkpoint as GGUF in 16 bits; llama.cpp then quantizes it to Q4_0."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    wide = output.with_suffix(".f16.gguf")
    writer = gguf.GGUFWriter(wide, "exaone4")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.EXAONE4, config["num_hidden_layers"])
    for path in sorted(checkpoint.glob("*.safetensors")):
        for name, values in tensors(path):
            known = names.get_name(name, try_suffixes=(".weight",))
            assert known is not None, name
            writer.add_tensor(known, values.astype(np.float16) if values.ndim > 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = Q4_0_FILE
    if head != "default":
        settings.output_tensor_type = gguf.GGMLQuantizationType[head]
    failed = llama_cpp.llama_model_quantize(bytes(wide), bytes(output), ctypes.byref(settings))
    wide.unlink()
    if failed:
        raise SystemExit(f"llama.cpp cannot quantize {wide}")


class Runner:
    """A loaded model and its context, whose KV cache holds several sequences."""

    def __init__(self, model: Path, threads: int, sequences: int, *, unified: bool) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(bytes(model), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.kv_unified = CONTEXT * sequences, sequences, unified
        settings.n_threads = settings.n_threads_batch = threads
        self.clock = time.process_time if threads == 1 else time.perf_counter
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot load {model}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)

    def logits(self, tokens: list[tuple[int, int, int]], outputs: list[int]) -> list[NDArray[np.float32]]:
        """Append tokens (id, position, sequence) to the cache; the logits [V] after those of these places."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for place, (token, position, sequence) in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = 0
        for place in outputs:
            batch.logits[place] = 1
        if llama_cpp.llama_decode(self.context, batch):
            raise SystemExit("llama_decode failed")
        pointers = [llama_cpp.llama_get_logits_ith(self.context, place) for place in outputs]
        return [np.ctypeslib.as_array(pointer, (self.vocabulary,)) for pointer in pointers]

    def turn(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Seconds up to each first new token and of all further ones, and the logits after the first prompt."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        last, first, after_prompts = [], [], []
        start = self.clock()
        for sequence, prompt in enumerate(prompts):
            tokens = [(token, position, sequence) for position, token in enumerate(prompt)]
            (logits,) = self.logits(tokens, [len(prompt) - 1])
            last.append(int(logits.argmax()))
            first.append(self.clock() - start)
            after_prompts.append(logits.copy())
        places = list(range(len(prompts)))
        decode_start = self.clock()
        for number in range(new_tokens - 1):
            step = [(last[sequence], len(prompts[sequence]) + number, sequence) for sequence in places]
            last = [int(logits.argmax()) for logits in self.logits(step, places)]
        decoded = self.clock() - decode_start
        return {"first": first, "decode": decoded, "logits": after_prompts[0].tolist()}


def weight_bytes(model: Path) -> int:
    """Bytes of the weights that a step reads: every tensor but the embeddings."""
    return int(sum(tensor.n_bytes for tensor in gguf.GGUFReader(model).tensors if tensor.name != "token_embd.weight"))


def run(model: Path, threads: int, sequences: int, *, unified: bool) -> None:
    """Print the size of the model, then take a turn for each line."""
    runner = Runner(model, threads, sequences, unified=unified)
    print(json.dumps({"bytes": weight_bytes(model)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(runner.turn(*json.loads(line))), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        run(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), unified=sys.argv[5] == "1")
