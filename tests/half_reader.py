"""The bundled reader with half of its layers: what a test needs where every layer costs time."""

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from calib_data import READER


def half_of_the_reader(folder: Path) -> Path:
    """A sliding and a global layer, a vision block with windows and one without, and the MTP layer."""
    shutil.copytree(READER, folder)
    config = json.loads((folder / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    text |= {"num_hidden_layers": 2, "layer_types": text["layer_types"][:2]}
    vision |= {"depth": 2, "fullatt_block_indexes": [1]}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not re.search(r"l\.(blocks|layers)\.[23]\.", name)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
