"""Open a checkpoint for its graphs: the tensors that the model has, all of them, in files inside the folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from console.errors import InputError
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import find_family, model_config
from quantize.scheme import has_mtp, is_tied

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

    from quantize.checkpoint.reader import Checkpoint
    from quantize.model.families import Family

_PACKED = ("weight_packed", "qweight")  # what formats store instead of a linear's `weight`
_FLATTENED = "U8"  # dtype of weights that formats of bitsandbytes store by their bytes, whatever their shape


def open_model(folder: Path) -> tuple[Checkpoint, Family, PreTrainedConfig]:
    """Open a checkpoint, and find its family and config.

    Raises InputError where `open_checkpoint` does, where weights lie outside the folder, or where one is missing.
    """
    checkpoint = open_checkpoint(folder)
    _refuse_outside(checkpoint)
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    return _keep_parameters(checkpoint, family, config), family, config


def _refuse_outside(checkpoint: Checkpoint) -> None:
    """Raise InputError for a file outside its folder: ONNX Runtime opens no external data there."""
    for path in checkpoint.files:
        if not path.resolve().is_relative_to(checkpoint.folder.resolve()):
            raise InputError(
                f"{path} is a symbolic link out of its folder (a hub cache?), and graphs can only use weights inside "
                "it; get a plain folder with `hf download ORGANISATION/MODEL --local-dir FOLDER`"
            )


def _keep_parameters(checkpoint: Checkpoint, family: Family, config: PreTrainedConfig) -> Checkpoint:
    """Return the checkpoint without biases that the model does not have: transformers ignores them, too.

    Raises InputError for a parameter that is not stored in any format, which transformers would draw at random, and for
    one of another shape.
    """
    parameters = dict(family.skeleton(config).named_parameters(remove_duplicate=False))
    tied, mtp = is_tied(checkpoint, family, config), has_mtp(checkpoint, family)
    for name, parameter in parameters.items():
        path, _, kind = name.rpartition(".")
        in_another_format = kind == "weight" and any(f"{path}.{packed}" in checkpoint.tensors for packed in _PACKED)
        left_out = family.tower(name) == "mtp" and not mtp
        if in_another_format or left_out or (tied and path == family.head):
            continue
        if checkpoint.tensor(name).dtype != _FLATTENED:
            checkpoint.require_shape(name, tuple(parameter.shape))
    kept = {name: t for name, t in checkpoint.tensors.items() if name in parameters or not name.endswith(".bias")}
    return replace(checkpoint, tensors=kept)
