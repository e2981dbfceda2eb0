"""From a checkpoint to a quantized one, a block at a time.

The memory rule lives here: one block's weights, its Hessians and the activations of the calibration documents are in
memory, however many layers the model has. A block is loaded, the documents run through it, its linears are solved, the
documents run through what it has become, and it is written and freed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from calib_data.errors import InputError
from quantize import gptq
from quantize.calibration import read_samples
from quantize.checkpoint import Checkpoint, CheckpointWriter, open_checkpoint
from quantize.family import Family, find_family, model_config, repair_config
from quantize.formats import described, quantization_config, stored
from quantize.grids import Grid, dequantize, round_to_nearest
from quantize.output import REPORT, copy_companions, is_finished, output_folder, write_json
from quantize.report import LinearReport, Report
from quantize.streams import DecoderStream, VisionStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn
    from transformers import PreTrainedConfig

    from quantize.settings import Settings

    Progress = Callable[[int, int, str], None]  # steps done, steps in all, what is done next
    Context = Callable[[int], dict[str, Any]]  # a document -> keyword arguments of the block
    Linears = tuple[tuple[str, ...], ...]  # linears that read the same input, group by group


@dataclass(frozen=True)
class Solved:
    """A quantized linear: codes [N, K] int8, scales [N, K / group size]."""

    codes: torch.Tensor
    scales: torch.Tensor
    grid: Grid


def quantize(settings: Settings, progress: Progress = lambda *_: None) -> Report | None:
    """Quantize a checkpoint into `settings.folder`. Returns None when that folder already holds the result.

    Raises InputError for whatever is wrong with the input; nothing is left behind then.
    """
    started = time.perf_counter()
    checkpoint = open_checkpoint(settings.model)
    if "quantization_config" in checkpoint.config:
        raise InputError(f"{settings.model} is quantized already; give the original checkpoint")
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    record = settings.record(checkpoint.fingerprint())
    if is_finished(settings.folder, record):
        return None
    walk = Walk(settings, checkpoint, family, config, Report(record), progress)
    walk.check()
    with output_folder(settings.folder) as folder:
        walk.run(CheckpointWriter(folder))
        copy_companions(settings.model, folder)
        write_json(folder / "config.json", walk.output_config())
        walk.report.seconds = time.perf_counter() - started
        write_json(folder / REPORT, walk.report.as_dict())
    return walk.report


class Walk:
    """One pass over a model, from the pixels to the head."""

    def __init__(
        self,
        settings: Settings,
        checkpoint: Checkpoint,
        family: Family,
        config: PreTrainedConfig,
        report: Report,
        progress: Progress,
    ) -> None:
        self.settings, self.checkpoint, self.family, self.config = settings, checkpoint, family, config
        self.report = report
        self.device = torch.device(settings.device)
        self.model = family.skeleton(config)
        self.tied = f"{family.head}.weight" not in checkpoint.tensors and _ties(config)
        self.grids: dict[str, Grid] = {}
        self._progress = progress
        self._done = 0
        self._written: set[str] = set()

    def check(self) -> None:
        """Compare the weights with the config, and the widths with the group size. Raises InputError."""
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if self.tied and name == f"{self.family.head}.weight":
                continue
            if name not in self.checkpoint.tensors:
                raise InputError(f"{self.settings.model}: the checkpoint has no tensor {name}; is it complete?")
            shape = self.checkpoint.tensors[name].shape
            if shape != tuple(parameter.shape):
                raise InputError(f"{name} is {list(shape)} in the checkpoint, {list(parameter.shape)} by config.json")
        for path, grid in self._all_grids().items():
            width = self.model.get_submodule(path).in_features
            if grid is not None and width % grid.group_size:
                raise InputError(f"--group-size {grid.group_size} does not divide the {width} inputs of {path}")

    def _all_grids(self) -> dict[str, Grid | None]:
        """The grid of every linear of the model, by its full path."""
        family = self.family
        parts: dict[str, Grid | None] = {}
        for path in family.vision_blocks(self.config):
            parts.update(dict.fromkeys(_flat(path, family.vision_linears), self.settings.grid_of("vision")))
        if family.merger:
            parts.update(dict.fromkeys(_flat(family.merger, family.merger_linears), self.settings.grid_of("vision")))
        for path in family.decoder_blocks(self.config):
            parts.update(dict.fromkeys(_flat(path, family.decoder_linears), self.settings.grid_of("decoder")))
        return {**parts, family.head: self.settings.grid_of("head")}

    @torch.no_grad()
    def run(self, writer: CheckpointWriter) -> None:
        """Solve and write everything."""
        self.writer = writer
        ids, images = self._see()
        self._decode(self._embed(ids, images))
        self._copy_rest()
        self._step("writing the index")
        writer.finish()
        self.report.bytes = writer.total_bytes

    def _step(self, what: str) -> None:
        total = len(self.family.vision_blocks(self.config)) + len(self.family.decoder_blocks(self.config)) + 4
        self._progress(self._done, total + (self.family.vision is not None), what)
        self._done += 1

    def _see(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Read the documents and run their images through the vision tower: token ids, image embeddings of each."""
        self._step("reading documents")
        ids, family = [], self.family
        vision = patch_embed = None
        if family.vision and family.patch_embed:
            vision = VisionStream(self.model.get_submodule(family.vision), self.device)
            patch_embed = self._load(family.patch_embed)
        for sample in read_samples(self.settings, self.config):
            ids.append(sample.ids)
            if vision is not None and patch_embed is not None:
                assert sample.patches is not None
                assert sample.grid is not None
                vision.add(patch_embed(sample.patches.to(self.device)), sample.grid)
        self.report.documents, self.report.tokens = len(ids), sum(len(i) for i in ids)
        if vision is None or not family.merger or not family.patch_embed:
            return ids, []
        self._write_block(family.patch_embed, (), {})
        grid = self.settings.grid_of("vision")
        for i, path in enumerate(family.vision_blocks(self.config)):
            self._block(path, family.vision_linears, grid, vision.hidden, partial(vision.context, i))
        self._block(family.merger, family.merger_linears, grid, vision.hidden, lambda _: {})
        return ids, vision.image_tokens()

    def _embed(self, ids: list[torch.Tensor], images: list[torch.Tensor]) -> list[torch.Tensor]:
        """Embed the tokens [1, T, width] of every document, image tokens included, and write the embedding."""
        name = f"{self.family.embeddings}.weight"
        table = self._read(name).to(self.settings.torch_dtype)
        hidden = [table[i].float()[None] for i in ids]
        for h, i, image in zip(hidden, ids, images, strict=False):
            h[0, i == self.config.image_token_id] = image.to(h)
        self._write([(name, table)])
        return hidden

    def _decode(self, hidden: list[torch.Tensor]) -> None:
        family = self.family
        decoder = DecoderStream(self.model.get_submodule(family.text), self.device, hidden)
        grid = self.settings.grid_of("decoder")
        for i, path in enumerate(family.decoder_blocks(self.config)):
            self._block(path, family.decoder_linears, grid, hidden, partial(decoder.context, i))
        self._block(family.norm, (), None, hidden, lambda _: {})
        grid = self.settings.grid_of("head")
        if grid is not None or not self.tied:
            self._block(family.head, (("",),), grid, hidden, lambda _: {}, last=True)

    def _block(
        self,
        path: str,
        linears: Linears,
        grid: Grid | None,
        hidden: list[torch.Tensor],
        context: Context,
        last: bool = False,
    ) -> None:
        """Solve one block, replace the documents' activations by its outputs (unless `last`), write it and free it."""
        self._step(path)
        groups = tuple(tuple(_join(path, name) for name in group) for group in linears)
        module = self._load(path, quantized=[name for group in groups for name in group] if grid else [])
        solved: dict[str, Solved] = {}
        if grid is not None:
            hessians = self._hessians(module, groups, hidden, context)
            for group in groups:
                solved.update(self._solve(group, hessians.pop(group[0]), grid))
        if not last:
            for i in range(len(hidden)):
                hidden[i] = module(hidden[i].to(self.device), **context(i)).cpu()
        self._write_block(path, groups, solved)

    def _hessians(
        self,
        module: nn.Module,
        groups: Linears,
        hidden: list[torch.Tensor],
        context: Context,
    ) -> dict[str, torch.Tensor]:
        """Run all documents through a block and sum up the Hessian of what each group of linears reads."""
        hessians, hooks = {}, []
        for group in groups:
            linear = self.model.get_submodule(group[0])
            H = torch.zeros(linear.in_features, linear.in_features, device=self.device)
            hessians[group[0]] = H

            def listen(_: nn.Module, inputs: tuple[torch.Tensor, ...], H: torch.Tensor = H) -> None:
                gptq.add_inputs(H, inputs[0].reshape(-1, H.shape[0]))

            hooks.append(linear.register_forward_pre_hook(listen))
        for i in range(len(hidden)):
            module(hidden[i].to(self.device), **context(i))
        for hook in hooks:
            hook.remove()
        return hessians

    def _solve(self, group: tuple[str, ...], H: torch.Tensor, grid: Grid) -> dict[str, Solved]:
        """Quantize linears that read the same inputs, put the result in their place, and report on it."""
        started = time.perf_counter()
        weights = [self.model.get_submodule(path).weight for path in group]
        W = torch.cat(weights)
        damping = None
        nearest = round_to_nearest(W, grid)
        codes, scales = nearest
        if self.settings.solver == "gptq":
            factor = gptq.factorise(H)
            codes, scales = gptq.solve(W, factor, grid)
            damping = factor.damping if math.isfinite(factor.damping) else None
        rounded, solution = dequantize(*nearest, grid), dequantize(codes, scales, grid)
        seconds = time.perf_counter() - started
        solved, row = {}, 0
        for path, weight in zip(group, weights, strict=True):
            rows = slice(row, row := row + len(weight))
            energy = gptq.output_energy(weight, H) or 1.0
            error = gptq.output_energy(weight - solution[rows], H) / energy
            error_rtn = gptq.output_energy(weight - rounded[rows], H) / energy
            share = round(seconds * len(weight) / len(W), 3)
            shape = tuple(weight.shape)
            self.report.linears.append(
                LinearReport(
                    path, self._part(path), shape, grid.bits, grid.group_size, error, error_rtn, damping, share
                )
            )
            weight.copy_(solution[rows])
            solved[path] = Solved(codes[rows], scales[rows], grid)
            self.grids[path] = grid
        return solved

    def _part(self, path: str) -> str:
        if path == self.family.head:
            return "head"
        return "vision" if self.family.vision and path.startswith(self.family.vision) else "decoder"

    def _read(self, name: str) -> torch.Tensor:
        """Read a tensor as it is stored. Raises InputError when it is not finite or the output dtype cannot hold it."""
        if self.tied and name == f"{self.family.head}.weight":
            name = f"{self.family.embeddings}.weight"
        tensor = self.checkpoint.load(name)
        if not tensor.is_floating_point():
            return tensor
        if not torch.isfinite(tensor).all():
            file = self.checkpoint.tensors[name].file
            raise InputError(f"{file}: {name} has NaN or infinite values; the checkpoint is damaged, download it again")
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if largest > torch.finfo(self.settings.torch_dtype).max:
            raise InputError(
                f"{name} reaches {largest:.3g}, which {self.settings.dtype} cannot hold; use --dtype bfloat16"
            )
        return tensor

    def _load(self, path: str, quantized: Iterable[str] = ()) -> nn.Module:
        """Fill a module of the skeleton in float32: `quantized` weights as they are, others as they will be stored."""
        module: nn.Module = self.model.get_submodule(path)
        state = {}
        precise = {f"{linear}.weight" for linear in quantized}
        for name, _ in module.named_parameters():
            full = f"{path}.{name}"
            tensor = self._read(full)
            if full not in precise:
                tensor = tensor.to(self.settings.torch_dtype)
            state[name] = tensor.to(self.device, torch.float32)
        module.load_state_dict(state, assign=True)
        return module.requires_grad_(False)

    def _write_block(self, path: str, groups: Linears, solved: dict[str, Solved]) -> None:
        """Write a block of the skeleton and free it. Linears that read the same inputs lie side by side in the file."""
        dtype, module = self.settings.torch_dtype, self.model.get_submodule(path)
        state = {f"{path}.{name}": tensor for name, tensor in module.named_parameters()}
        tensors: list[tuple[str, torch.Tensor]] = []
        small: list[tuple[str, torch.Tensor]] = []
        for group in groups:
            parts = []
            for linear in group:
                weight, bias = state.pop(f"{linear}.weight"), state.pop(f"{linear}.bias", None)
                part = {} if linear in solved else {"weight": weight.to(dtype)}
                if linear in solved:
                    s = solved[linear]
                    part = stored(s.codes, s.scales, s.grid)
                    small += _named(linear, described(s.codes, s.scales, s.grid, dtype))
                parts.append(part if bias is None else {**part, "bias": bias.to(dtype)})
            for key in parts[0]:
                tensors += [(f"{linear}.{key}", part[key]) for linear, part in zip(group, parts, strict=True)]
        self._write([*tensors, *((name, tensor.to(dtype)) for name, tensor in state.items())], small)
        module.to("meta")

    def _write(
        self, tensors: list[tuple[str, torch.Tensor]], small: list[tuple[str, torch.Tensor]] | None = None
    ) -> None:
        self.writer.write(tensors, small or [])
        self._written.update(name for name, _ in tensors)

    def _copy_rest(self) -> None:
        """Copy what transformers does not know, such as the MTP layer, in 16 bits; its neighbours side by side too."""
        known = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        rest = [name for name in self.checkpoint.tensors if name not in known]
        order = {suffix: i for i, suffix in enumerate(_flat("", self.family.decoder_linears))}
        rank = {name: next((i for suffix, i in order.items() if f".{suffix}." in name), len(order)) for name in rest}
        for name in sorted(rest, key=lambda name: (rank[name], name)):
            tensor = self._read(name)
            floats = tensor.is_floating_point() and tensor.dtype.itemsize > 1
            self._write([(name, tensor.to(self.settings.torch_dtype) if floats else tensor)])

    def output_config(self) -> dict[str, Any]:
        """Make the config.json of the result: repaired, with its dtype and what is quantized how."""
        raw = repair_config(self.checkpoint.config)
        for part in (raw, raw.get("text_config"), raw.get("vision_config")):
            if isinstance(part, dict):
                for key in ("dtype", "torch_dtype"):
                    if key in part:
                        part[key] = self.settings.dtype
                if self.tied and self.settings.head_bits != 16 and "tie_word_embeddings" in part:
                    part["tie_word_embeddings"] = False
        raw["dtype"] = self.settings.dtype
        raw["tie_word_embeddings"] = self.tied and self.settings.head_bits == 16
        linears = [name for name, module in self.model.named_modules() if isinstance(module, torch.nn.Linear)]
        plain = [name for name in linears if name not in self.grids]
        raw["quantization_config"] = quantization_config(self.settings, self.grids, plain, self.family.vision)
        return raw


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _flat(path: str, linears: Linears) -> list[str]:
    return [_join(path, name) for group in linears for name in group]


def _named(linear: str, part: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(f"{linear}.{key}", tensor) for key, tensor in part.items()]


def _ties(config: PreTrainedConfig) -> bool:
    return bool(config.tie_word_embeddings or config.get_text_config().tie_word_embeddings)
