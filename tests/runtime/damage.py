"""Changes to a model folder, as accidents make them."""

import json
import struct
from pathlib import Path

import numpy as np

WEIGHTS = "model.safetensors"


def edit_json(path: Path, **changes: object) -> None:
    """Set top-level keys of a JSON file; None removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def set_context(folder: Path, tokens: int) -> None:
    path = folder / "runtime.json"
    edit_json(path, text={**json.loads(path.read_text())["text"], "context": tokens})


def change_tensor(folder: Path, name: str, change: object) -> None:
    """Apply a function to one stored float16 tensor; header and size of the file stay as they are."""
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    entry = json.loads(content[8 : 8 + length])[name]
    assert entry["dtype"] == "F16"
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    tensor = np.frombuffer(content[begin:end], np.float16).reshape(entry["shape"])
    content[begin:end] = np.asarray(change(tensor), np.float16).tobytes()
    path.write_bytes(content)
