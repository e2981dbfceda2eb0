"""The state of a training run: how it begins, its checkpoint, and the reader folder that it is exported to."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from calib_data import READER
from console.errors import InputError
from console.files import read_object
from training import architecture
from training.curve import draw
from training.losses import TrainedModule

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

MUON, ADAM = 0.02, 3e-3
"""Peak learning rates."""


@dataclass
class State:
    """Everything that a resumed run needs."""

    module: TrainedModule
    """What is trained, in float32."""
    average: dict[str, Tensor]
    """Exponential average of the reader's weights, which is what is exported."""
    optimizers: tuple[torch.optim.Optimizer, ...]
    """Muon and AdamW."""
    step: int = 0
    """Steps done."""
    warm_from: int = 0
    """The step at which the optimizers were new; the learning rate warms up from there."""
    seconds: float = 0.0
    """Time spent training."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Means over each 50 steps."""


def new_state(weights: Path | None, seed: int) -> State:
    """Begin with random weights, or with those of a safetensors file."""
    torch.manual_seed(seed)
    module = TrainedModule()
    if weights is not None:
        module.reader.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    average = {name: tensor.clone() for name, tensor in module.reader.state_dict().items()}
    return State(module, average, _optimizers(module))


def committed_state(seed: int) -> State:
    """Begin with the committed weights at the step that they have reached; optimizers and character layer are new."""
    if read_object(READER / "config.json") != architecture.CONFIG:
        raise InputError(f"{READER}: its weights are of another architecture than this code's; give --scratch")
    state = new_state(READER / "model.safetensors", seed)
    state.curve = json.loads((READER / "curve.json").read_text(encoding="utf-8"))
    state.step = state.warm_from = int(state.curve[-1]["step"])
    state.seconds = 60 * state.curve[-1]["minutes"]
    return state


def _optimizers(module: TrainedModule) -> tuple[torch.optim.Optimizer, ...]:
    """Muon (Jordan et al. 2024) for the matrices inside the model; AdamW for embeddings, heads, biases and norms.

    In the same time Muon named twice as many characters as AdamW alone.
    """
    named = dict(module.named_parameters())
    ends = ("lm_head.weight", "embed_tokens.weight", "characters.weight")
    inner = {name for name, parameter in named.items() if parameter.dim() == 2 and not name.endswith(ends)}
    muon = torch.optim.Muon([named[name] for name in sorted(inner)], lr=MUON, weight_decay=0.01)
    rest = [parameter for name, parameter in named.items() if name not in inner]
    return muon, torch.optim.AdamW(rest, lr=ADAM, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def save(state: State, path: Path) -> None:
    """Write a checkpoint; a kill while writing leaves the previous one."""
    parts = {
        "module": state.module.state_dict(), "average": state.average,
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
        "step": state.step, "warm_from": state.warm_from, "seconds": state.seconds, "curve": state.curve,
    }  # fmt: skip
    torch.save(parts, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)


def load(state: State, path: Path) -> None:
    """Read a checkpoint into a state."""
    parts = torch.load(path, weights_only=True)
    state.module.load_state_dict(parts["module"])
    for optimizer, saved in zip(state.optimizers, parts["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    state.average, state.step, state.warm_from = parts["average"], parts["step"], parts["warm_from"]
    state.seconds, state.curve = parts["seconds"], parts["curve"]


def export(state: State, folder: Path) -> None:
    """Write a reader folder: the averaged weights in float16, the training curve, and the files that do not change."""
    architecture.write(folder)
    for name in ("chat_template.jinja", "README.md"):
        shutil.copy(READER / name, folder)
    half = {name: tensor.half().contiguous() for name, tensor in state.average.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "curve.json").write_text("[\n" + ",\n".join(map(json.dumps, state.curve)) + "\n]\n", encoding="utf-8")
    draw(state.curve).savefig(folder / "curve.png")
