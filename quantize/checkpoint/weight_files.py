"""Find the files that hold a folder's weights, as `from_pretrained` of transformers does.

transformers takes model.safetensors before an index. Of an index it takes the names of the shards only, and reads every
tensor of every shard. `_get_resolved_checkpoint_files` and `_load_pretrained_model` in its modeling_utils.py are the
source. What it resolves outside of the folder, or with torch's pickles, is refused.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from console.files import read_object

if TYPE_CHECKING:
    from pathlib import Path

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def weight_files(folder: Path, config: dict[str, Any]) -> tuple[list[Path], dict[str, str]]:
    """Find the safetensors files of a folder, in the order in which transformers reads them.

    Returns the files, and the index's shard of each tensor (empty without an index). Raises InputError where they are
    missing, or where config.json or an adapter would have transformers read other weights.
    """
    if config.get("transformers_weights") is not None:
        raise InputError(
            f"{folder / 'config.json'}: transformers_weights names another weights file; remove the key, or give a "
            f"folder with {SINGLE} or {INDEX}"
        )
    if (folder / ADAPTER).exists():
        raise InputError(
            f"{folder / ADAPTER}: an adapter that is not merged would be left out; merge it into the weights "
            "(merge_and_unload of PEFT), or remove its files"
        )
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], {}
    if (folder / INDEX).is_file():
        weight_map = _read_index(folder / INDEX)
        return [folder / name for name in sorted(set(weight_map.values()))], weight_map
    found = [name for name in _PICKLES if (folder / name).exists()]
    if found:
        raise InputError(
            f"{folder} has {found[0]}, and only safetensors files are read; convert it: load it with transformers and "
            "call save_pretrained"
        )
    raise InputError(f"{folder} has neither {SINGLE} nor {INDEX}; give a folder with safetensors weights")


def _read_index(path: Path) -> dict[str, str]:
    """Read the shard of each tensor. Raises InputError unless all are names of files in the index's folder."""
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path} has no weight_map; download it again")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or PurePath(name).name != name or not name.endswith(".safetensors"):
            raise InputError(
                f"{path} places {tensor} in {name!r}, which is no name of a safetensors file next to it; download it "
                "again"
            )
    for name in sorted(set(weight_map.values())):
        if not (path.parent / name).is_file():
            raise InputError(f"{path} names {name}, which is not there; download it")
    return weight_map
