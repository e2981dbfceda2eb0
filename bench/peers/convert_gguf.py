"""Turn SmolLM2's GGUF file into a checkpoint folder. Run with the package gguf on the path.

    python convert_gguf.py FILE FOLDER

transformers reads the file, dequantizes its weights (Q4_1) and undoes the order that llama.cpp gives q and k. The
folder holds float32 weights. Its chat template is the message itself, because the books are no conversations.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(file: Path, folder: Path) -> None:
    """Read, convert, save."""
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    config = json.loads(model.config.to_json_string(use_diff=False))
    del config["quantization_config"]
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    folder.mkdir()
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
