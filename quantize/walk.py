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
from calib_data.progress import track
from quantize import gptq
from quantize.calibration import read_samples
from quantize.checkpoint import Checkpoint, CheckpointWriter, open_checkpoint
from quantize.descent import descend
from quantize.family import Family, find_family, full_paths, model_config
from quantize.formats import described, stored
from quantize.grids import Grid, dequantize, fit_weighted, round_to_nearest
from quantize.output import REPORT, copy_companions, is_finished, output_folder, write_json
from quantize.report import LinearReport, Report
from quantize.scheme import check, is_tied, output_config, plan_grids
from quantize.streams import DecoderStream, VisionStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn
    from transformers import PreTrainedConfig

    from quantize.family import Linears
    from quantize.settings import Settings

    Context = Callable[[int], dict[str, Any]]  # a document -> what a block wants beside its activations
    Named = list[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Solved:
    """A quantized linear: codes [N, K] int8, scales [N, K / group size]."""

    codes: torch.Tensor
    scales: torch.Tensor
    grid: Grid


def quantize(settings: Settings) -> Report | None:
    """Quantize a checkpoint into `settings.folder`. Returns None when that folder already holds the result.

    Raises InputError for whatever is wrong with the input; nothing is left behind then.
    """
    started = time.perf_counter()
    checkpoint = open_checkpoint(settings.model)
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    if family.mtp and not any(name.startswith(f"{family.mtp}.") for name in checkpoint.tensors):
        config.get_text_config().num_nextn_predict_layers = 0  # whoever saved it with transformers has lost the layer
    if "quantization_config" in checkpoint.config:
        raise InputError(f"{settings.model} is quantized already; give the original checkpoint")
    record = settings.record(checkpoint.fingerprint())
    if is_finished(settings.folder, record):
        return None
    walk = Walk(settings, checkpoint, family, config, Report(record))
    check(settings, checkpoint, family, walk.model, walk.grids, walk.tied)
    with output_folder(settings.folder) as folder:
        with CheckpointWriter(folder) as writer:
            walk.run(writer)
        copy_companions(settings.model, folder)
        write_json(folder / "config.json", output_config(settings, checkpoint, family, walk.grids, walk.tied))
        walk.report.bytes = writer.total_bytes
        walk.report.seconds = time.perf_counter() - started
        write_json(folder / REPORT, walk.report.as_dict())
    return walk.report


class Walk:
    """One pass over a model, from the pixels to the head."""

    def __init__(
        self, settings: Settings, checkpoint: Checkpoint, family: Family, config: PreTrainedConfig, report: Report
    ) -> None:
        self.settings, self.checkpoint, self.family, self.config = settings, checkpoint, family, config
        self.report = report
        self.device = torch.device(settings.device)
        self.model = family.skeleton(config)
        self.tied = is_tied(checkpoint, family, config)
        self.grids = plan_grids(settings, family, config)
        self.ids: list[torch.Tensor] = []
        self.images: list[torch.Tensor] = []
        self.hidden: list[torch.Tensor] = []
        self.decoder = DecoderStream(self.model.get_submodule(family.text), self.device, self.hidden)

    @torch.no_grad()
    def run(self, writer: CheckpointWriter) -> None:
        """Solve and write everything."""
        self.writer = writer
        for step in track(self.steps(), "Quantizing"):
            step()

    def steps(self) -> list[Callable[[], None]]:
        """List what is to be done, in order: the documents, a step a block, and what is only copied."""
        return [*self._vision_steps(), *self._decoder_steps(), self._copy_rest]

    def _vision_steps(self) -> list[Callable[[], None]]:
        """Read the documents and run their images through the vision tower."""
        family = self.family
        if not (family.vision and family.merger and family.patch_embed):
            return [partial(self._read_documents, None)]
        vision = VisionStream(self.model.get_submodule(family.vision), self.device)
        steps = [partial(self._read_documents, vision)]
        for i, path in enumerate(family.vision_blocks(self.config)):
            context = partial(vision.context, i)
            steps.append(partial(self._block, path, family.vision_linears, vision.hidden, context))
        steps.append(partial(self._block, family.merger, family.merger_linears, vision.hidden, _nothing))
        return [*steps, partial(self._keep_images, vision)]

    def _decoder_steps(self) -> list[Callable[[], None]]:
        """Run the documents, image tokens included, through the decoder and into the head."""
        family = self.family
        steps: list[Callable[[], None]] = [self._embed]
        for i, path in enumerate(family.decoder_blocks(self.config)):
            steps.append(partial(self._block, path, family.decoder_linears, self.hidden, self.decoder_context(i)))
        steps.append(partial(self._block, family.norm, (), self.hidden, _nothing))
        if family.mtp_layers(self.config):
            steps.append(self._mtp)
        return [*steps, self._head]

    def decoder_context(self, block: int) -> Context:
        """Give what a decoder layer wants for each document."""
        return partial(self.decoder.context, block)

    def _read_documents(self, vision: VisionStream | None) -> None:
        patch_embed = self.load(self.family.patch_embed) if vision and self.family.patch_embed else None
        for sample in read_samples(self.settings, self.config):
            self.ids.append(sample.ids)
            if vision is not None and patch_embed is not None:
                assert sample.patches is not None
                assert sample.grid is not None
                vision.add(patch_embed(sample.patches.to(self.device)), sample.grid)
        self.report.documents, self.report.tokens = len(self.ids), sum(len(ids) for ids in self.ids)
        if patch_embed is not None and self.family.patch_embed:
            self._write_block(self.family.patch_embed, (), {})

    def _keep_images(self, vision: VisionStream) -> None:
        self.images = vision.image_tokens()
        vision.hidden.clear()

    def _embed(self) -> None:
        """Take the documents' embeddings as the decoder's input, and write the table."""
        name = f"{self.family.embeddings}.weight"
        self.hidden += self._embeddings()
        self._write([(name, self._read(name).to(self.settings.torch_dtype))])

    def _embeddings(self) -> list[torch.Tensor]:
        """Embeddings [1, T, width] of the tokens of every document, image tokens included."""
        table = self._read(f"{self.family.embeddings}.weight").to(self.settings.torch_dtype)
        embedded = [table[ids].float()[None] for ids in self.ids]
        for states, ids, image in zip(embedded, self.ids, self.images, strict=False):
            states[0, ids == self.config.image_token_id] = image.to(states)
        return embedded

    def _mtp(self) -> None:
        """Solve the MTP layer on the decoder's last hidden states and the embeddings of the tokens that follow."""
        assert self.family.mtp
        embedded = self._embeddings()

        def context(document: int) -> dict[str, Any]:
            return {"embeddings": embedded[document].to(self.device), **self.decoder.mtp_context(document)}

        self._block(self.family.mtp, self.family.mtp_linears(self.config), self.hidden, context, last=True)

    def _head(self) -> None:
        if not self.tied or self.grids[self.family.head]:
            self._block(self.family.head, (("",),), self.hidden, _nothing, last=True)

    def _block(
        self, path: str, linears: Linears, hidden: list[torch.Tensor], context: Context, last: bool = False
    ) -> None:
        """Solve one block, replace the documents' activations by its outputs (unless `last`), write it and free it."""
        groups = full_paths(path, linears)
        module = self.load(path)
        solved: dict[str, Solved] = {}
        to_solve = {group: grid for group in groups if (grid := self.grids[group[0]]) is not None}
        if to_solve:
            hessians = self.hessians(module, to_solve, hidden, context)
            for group, grid in to_solve.items():
                solved.update(self._solve(group, hessians.pop(group), grid))
        if not last:
            for i in range(len(hidden)):
                hidden[i] = module(hidden[i].to(self.device), **context(i)).cpu()
        self._write_block(path, groups, solved)

    def hessians(
        self, module: nn.Module, groups: Iterable[tuple[str, ...]], hidden: list[torch.Tensor], context: Context
    ) -> dict[tuple[str, ...], torch.Tensor]:
        """Run all documents through a block and sum up the Hessian of what each group of linears reads.

        Where norms follow the linears instead of preceding them, a token's error matters relative to the token: image
        tokens enter EXAONE's decoder many times larger than text, and would be all that its first Hessians see. Tokens
        are therefore scaled to the same size there.
        """
        hessians, hooks = {}, []
        for group in groups:
            linear = self.model.get_submodule(group[0])
            H = hessians[group] = torch.zeros(linear.in_features, linear.in_features, device=self.device)
            hooks.append(linear.register_forward_pre_hook(partial(self._listen, H, group[0])))
        for i in range(len(hidden)):
            module(hidden[i].to(self.device), **context(i))
        for hook in hooks:
            hook.remove()
        return hessians

    def _listen(self, H: torch.Tensor, path: str, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        X = inputs[0].reshape(-1, len(H))
        gptq.add_inputs(H, same_size(X) if self.family.is_post_norm(path) else X)

    def _solve(self, group: tuple[str, ...], H: torch.Tensor, grid: Grid) -> dict[str, Solved]:
        """Quantize linears that read the same inputs, put the result in their place, and report on it."""
        started = time.perf_counter()
        weights = [self.model.get_parameter(f"{path}.weight") for path in group]
        W = torch.cat(weights)
        nearest = round_to_nearest(W, grid)
        codes, scales, damping = (*nearest, None) if self.settings.solver == "rtn" else solve(W, H, grid)
        rounded, solution = dequantize(*nearest, grid), dequantize(codes, scales, grid)
        seconds = time.perf_counter() - started
        solved, row = {}, 0
        for path, weight in zip(group, weights, strict=True):
            rows = slice(row, row := row + len(weight))
            energy = gptq.output_energy(weight, H) or 1.0  # nothing in, nothing out: no error either
            error = gptq.output_energy(weight - solution[rows], H) / energy
            error_rtn = gptq.output_energy(weight - rounded[rows], H) / energy
            about = (path, self.family.tower(path), tuple(weight.shape), grid.bits, grid.group_size)
            share = round(seconds * len(weight) / len(W), 3)
            self.report.linears.append(LinearReport(*about, error, error_rtn, damping, share))
            weight.copy_(solution[rows])
            solved[path] = Solved(codes[rows], scales[rows], grid)
        return solved

    def _read(self, name: str) -> torch.Tensor:
        """Read a tensor as it is stored. Raises InputError when it is not finite or the output dtype cannot hold it."""
        if self.tied and name == f"{self.family.head}.weight":
            name = f"{self.family.embeddings}.weight"
        tensor, dtype = self.checkpoint.load(name), self.settings.torch_dtype
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        lowest, highest = (float(bound) for bound in tensor.aminmax())
        if not math.isfinite(highest - lowest):
            file = self.checkpoint.tensors[name].file
            raise InputError(f"{file}: {name} has NaN or infinite values; the checkpoint is damaged, download it again")
        if max(highest, -lowest) > torch.finfo(dtype).max:
            largest = f"{max(highest, -lowest):.3g}"
            raise InputError(f"{name} reaches {largest}, which {self.settings.dtype} cannot hold; use --dtype bfloat16")
        return tensor

    def load(self, path: str) -> nn.Module:
        """Fill a module of the skeleton in float32: weights to be solved as they are, others as they will be stored."""
        module: nn.Module = self.model.get_submodule(path)
        state = {}
        for name, _ in module.named_parameters():
            full = f"{path}.{name}"
            tensor = self._read(full)
            if self.grids.get(full.removesuffix(".weight")) is None:
                tensor = tensor.to(self.settings.torch_dtype)
            state[name] = tensor.to(self.device, torch.float32)
        module.load_state_dict(state, assign=True)
        return module.requires_grad_(False)

    def _write_block(self, path: str, groups: Linears, solved: dict[str, Solved]) -> None:
        """Write a block of the skeleton and free it. Linears that read the same inputs lie side by side in the file."""
        dtype, module = self.settings.torch_dtype, self.model.get_submodule(path)
        state = {f"{path}.{name}": tensor for name, tensor in module.named_parameters()}
        tensors: Named = []
        small: Named = []
        for group in groups:
            parts: list[dict[str, torch.Tensor]] = []
            for linear in group:
                weight, bias = state.pop(f"{linear}.weight"), state.pop(f"{linear}.bias", None)
                if quantized := solved.get(linear):
                    solution = (quantized.codes, quantized.scales, quantized.grid)
                    parts.append(stored(*solution, self.settings.format))
                    about = described(*solution, self.settings)
                    small += [(f"{linear}.{key}", tensor) for key, tensor in about.items()]
                else:
                    parts.append({"weight": weight.to(dtype)})
                if bias is not None:
                    parts[-1]["bias"] = bias.to(dtype)
            for key in parts[0]:
                tensors += [(f"{linear}.{key}", part[key]) for linear, part in zip(group, parts, strict=True)]
        self._write([*tensors, *((name, tensor.to(dtype)) for name, tensor in state.items())], small)
        module.to("meta")

    def _write(self, tensors: Named, small: Named | None = None) -> None:
        self.writer.write(tensors, small or [])

    def _copy_rest(self) -> None:
        """Copy what no module stands for in 16 bits, neighbours side by side too."""
        known = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        rest = [name for name in self.checkpoint.tensors if name not in known]
        inner = [f".{linear}." for group in self.family.decoder_linears for linear in group]
        rank = {name: next((i for i, linear in enumerate(inner) if linear in name), len(inner)) for name in rest}
        for name in sorted(rest, key=lambda name: (rank[name], name)):
            tensor = self._read(name)
            convert = tensor.is_floating_point() and tensor.dtype.itemsize > 1
            self._write([(name, tensor.to(self.settings.torch_dtype) if convert else tensor)])


def solve(W: torch.Tensor, H: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    """Codes [N, K] and scales [N, K / group size] of W [N, K] for the Hessian H [K, K], and the damping that H needed.

    Scales that suit the inputs, then GPTQ, then coordinate descent. Where H is of no use, this is plain rounding and
    the damping None.
    """
    factor = gptq.factorise(H)
    if not math.isfinite(factor.damping):
        return *round_to_nearest(W, grid), None
    # At 8 bits GPTQ moves weights by more than a step, and clipping those costs more than a finer step saves.
    scales = fit_weighted(W, H.diagonal(), grid) if grid.bits == 4 else grid.fit(W)
    codes = gptq.solve(W, factor, scales, grid)
    damping = factor.damping
    del factor  # as large as H, which is all that is needed from here on
    undamped = H.diagonal().clone()
    gptq.damp(H, damping)
    codes, scales = descend(W, H, codes, scales, grid)
    H.diagonal().copy_(undamped)
    return codes, scales, damping


def same_size(X: torch.Tensor) -> torch.Tensor:
    """Scale tokens X [T, K], one a row, to a mean square of one; a token of zeros stays."""
    return X * X.square().mean(-1, keepdim=True).clamp(min=1e-30).rsqrt()


def _nothing(_: int) -> dict[str, Any]:
    return {}
