"""From a checkpoint to a quantized one, a block at a time.

The memory rule lives here: one block's weights and its Hessians are in memory, however many layers the model has; the
hidden states of the calibration documents are in files. A block is loaded, the documents run through it, its linears
are solved, the documents run through what it has become, and it is written and freed. After every step the journal
says how far the run has come, so that a run that was killed goes on there.
"""

from __future__ import annotations

import math
import resource
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from calib_data.errors import InputError
from calib_data.progress import say, track
from quantize import gptq
from quantize.activations import Activations, Layout
from quantize.calibration import read_samples
from quantize.checkpoint import Checkpoint, open_checkpoint
from quantize.family import Family, find_family, full_paths, model_config
from quantize.formats import described, stored
from quantize.journal import JOURNAL, Journal
from quantize.kv_ranges import KV_SCALES
from quantize.output import REPORT, TIMES, copy_companions, is_finished, output_folder, write_json
from quantize.report import LinearReport, Report, StepReport
from quantize.scheme import check, has_mtp, is_tied, output_config, plan_grids
from quantize.solver import Solved, same_size, solve_together
from quantize.streams import DecoderStream, VisionStream
from quantize.writer import CheckpointWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedConfig

    from quantize.family import Linears
    from quantize.settings import Settings

    Context = Callable[[int], dict[str, Any]]  # a document -> what a block wants beside its hidden states
    Named = list[tuple[str, torch.Tensor]]
    Steps = list[tuple[str, Callable[[], None]]]


def quantize(settings: Settings) -> Report | None:
    """Quantize a checkpoint into `settings.folder`. Returns None when that folder already holds the result.

    A run that was killed goes on where it was. Raises InputError for whatever is wrong with the input; nothing is left
    behind then.
    """
    checkpoint = open_checkpoint(settings.model)
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    if family.mtp_layers(config) and not has_mtp(checkpoint, family):
        config.get_text_config().num_nextn_predict_layers = 0
        say(f"{settings.model} has no MTP layer, as when transformers has saved it; none is written")
    if "quantization_config" in checkpoint.config:
        raise InputError(f"{settings.model} is quantized already; give the original checkpoint")
    record = settings.record(checkpoint.fingerprint())
    if is_finished(settings.folder, record):
        return None
    walk = Walk(settings, checkpoint, family, config)
    check(settings, checkpoint, family, walk.model, walk.grids, walk.tied)
    with output_folder(settings.folder, record) as (folder, journal):
        with CheckpointWriter(folder) as writer:
            walk.run(folder, writer, journal)
            writer.finish()
        copy_companions(settings.model, folder)
        write_json(folder / "config.json", output_config(settings, checkpoint, family, walk.grids, walk.tied))
        report = walk.report(writer.total_bytes)
        write_json(folder / REPORT, report.as_dict())
        write_json(folder / TIMES, report.times())
        write_json(folder / KV_SCALES, dict(journal.kv_ranges))
        walk.clear()
    return report


class Walk:
    """One pass over a model, from the pixels to the head."""

    def __init__(self, settings: Settings, checkpoint: Checkpoint, family: Family, config: PreTrainedConfig) -> None:
        self.settings, self.checkpoint, self.family, self.config = settings, checkpoint, family, config
        self.device = torch.device(settings.device)
        self.model = family.skeleton(config)
        self.tied = is_tied(checkpoint, family, config)
        self.grids = plan_grids(settings, family, config)
        self.ids: list[torch.Tensor] = []
        self.decoder = DecoderStream(self.model.get_submodule(family.text), self.device)
        self.vision = VisionStream(self.model.get_submodule(family.vision), self.device) if family.vision else None

    @torch.no_grad()
    def run(self, folder: Path, writer: CheckpointWriter, journal: Journal) -> None:
        """Do the steps that are not done yet: solve and write everything."""
        steps = self.begin(folder, writer, journal)
        done = len(journal.steps)
        say(f"{done} of {len(steps)} steps are done, going on" if done else self._disk_needed())
        for name, step in track(steps[done:], "Quantizing"):
            self.do(name, step)

    def begin(self, folder: Path, writer: CheckpointWriter, journal: Journal) -> Steps:
        """Read the documents, go to where the journal is, and list all steps."""
        self.folder, self.writer, self.journal = folder, writer, journal
        if journal.writer:
            writer.resume(journal.writer)
        self._read_documents()
        return [*self._vision_steps(), *self._decoder_steps(), ("the rest", self._copy_rest)]

    def do(self, name: str, step: Callable[[], None]) -> None:
        """Do one step and say so in the journal."""
        self._clear_states()  # those of a step that was not finished, too
        started = time.perf_counter()
        step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        self.journal.steps.append(StepReport(name, round(time.perf_counter() - started, 3), peak))
        self.journal.writer = self.writer.state()
        self.journal.save(self.folder)

    def report(self, total_bytes: int) -> Report:
        """Say what came out, once everything has run."""
        tokens = sum(len(ids) for ids in self.ids)
        journal = self.journal
        return Report(journal.settings, journal.linears, journal.steps, len(self.ids), tokens, total_bytes)

    def _vision_steps(self) -> Steps:
        """Run the documents' images through the vision tower."""
        family, vision = self.family, self.vision
        if vision is None or family.merger is None or family.patch_embed is None:
            return []
        steps: Steps = [(family.patch_embed, partial(self._embed_patches, family.patch_embed, vision))]
        for i, path in enumerate(family.vision_blocks(self.config)):
            steps.append((path, partial(self._block, path, family.vision_linears, partial(vision.context, i))))
        steps.append((family.merger, partial(self._block, family.merger, family.merger_linears, _nothing)))
        return [*steps, ("image tokens", partial(self._keep_images, vision))]

    def _decoder_steps(self) -> Steps:
        """Run the documents, image tokens included, through the decoder and into the head."""
        family = self.family
        steps: Steps = [(family.embeddings, self._embed)]
        for i, path in enumerate(family.decoder_blocks(self.config)):
            steps.append((path, partial(self._decoder_block, path, partial(self.decoder.context, i))))
        steps.append((family.norm, partial(self._block, family.norm, (), _nothing)))
        if family.mtp and family.mtp_layers(self.config):
            steps.append((family.mtp, partial(self._mtp, family.mtp)))
        return [*steps, (family.head, self._head)]

    def _read_documents(self) -> None:
        """Tokens and grids of all documents; their pixels are read again when their turn comes."""
        for sample in read_samples(self.settings, self.config):
            self.ids.append(sample.ids)
            self.decoder.lengths.append(len(sample.ids))
            if self.vision is not None:
                assert sample.grid is not None
                self.vision.grids.append(sample.grid)

    def _disk_needed(self) -> str:
        """Say how much the hidden states take: those that a block reads and those that it writes, and the images."""
        width = self.config.get_text_config().hidden_size
        values = 2 * sum(self.decoder.lengths) * width
        if self.vision is not None:
            tower = self.config.vision_config
            patches = sum(int(grid.prod(-1).sum()) for grid in self.vision.grids)
            images = patches // tower.spatial_merge_size**2 * width
            values = max(2 * patches * tower.hidden_size, values + images)
        needed = values * self.settings.torch_dtype.itemsize
        return f"{len(self.ids)} documents; their hidden states take up to {needed / 2**20:.1f} MiB in {self.folder}"

    def _embed_patches(self, path: str, vision: VisionStream) -> None:
        patch_embed = self.load(path)
        lengths = [int(grid.prod(-1).sum()) for grid in vision.grids]
        states = self._new_states(lengths, self.config.vision_config.hidden_size)
        for i, sample in enumerate(read_samples(self.settings, self.config)):
            assert sample.patches is not None
            states[i] = vision.windowed(patch_embed(sample.patches.to(self.device)), i)
        self.journal.states = states.layout
        self._write_block(path, (), {})

    def _keep_images(self, vision: VisionStream) -> None:
        """Put image tokens in reading order, in a file that stays until the end."""
        merged = self._states()
        images = self._new_states(merged.layout.lengths, merged.layout.width)
        for i in range(len(merged)):
            images[i] = vision.image_tokens(merged[i], i)
        self.journal.states, self.journal.images = None, images.layout

    def _embed(self) -> None:
        """Take the documents' embeddings as the decoder's input, and write the table."""
        table, embedded = self._embeddings()
        states = self._new_states(self.decoder.lengths, table.shape[1])
        for i in range(len(self.ids)):
            states[i] = embedded(i)
        self.journal.states = states.layout
        self._write([(f"{self.family.embeddings}.weight", table)])

    def _embeddings(self) -> tuple[torch.Tensor, Callable[[int], torch.Tensor]]:
        """The table as it is stored, and what gives a document's embeddings [T, width], image tokens included."""
        table = self._read(f"{self.family.embeddings}.weight").to(self.settings.torch_dtype)
        images = None if self.journal.images is None else self._open(self.journal.images)
        used = torch.cat(self.ids).unique()
        rows = table[used]  # so that whoever keeps `embedded` does not keep the table

        def embedded(document: int) -> torch.Tensor:
            ids = self.ids[document]
            states = rows[torch.searchsorted(used, ids)].float()
            if images is not None:
                states[ids == self.config.image_token_id] = images[document]
            return states

        return table, embedded

    def _decoder_block(self, path: str, context: Context) -> None:
        """Solve a decoder layer, and keep how large its keys and values were, before and after it was quantized."""
        self.decoder.recorder.largest.clear()
        self._block(path, self.family.decoder_linears, context)
        self.journal.kv_ranges[path] = self.decoder.recorder.ranges()

    def _mtp(self, path: str) -> None:
        """Solve the MTP layer on the decoder's last hidden states and the embeddings of the tokens that follow."""
        linears = self.family.mtp_linears(self.config)
        if self.grids[full_paths(path, linears)[0][0]] is None:
            self.load(path)
            self._write_block(path, full_paths(path, linears), {})
            return
        _, embedded = self._embeddings()

        def context(document: int) -> dict[str, Any]:
            return {"embeddings": embedded(document)[None].to(self.device), **self.decoder.mtp_context(document)}

        self._block(path, linears, context, last=True)

    def _head(self) -> None:
        if not self.tied or self.grids[self.family.head]:
            self._block(self.family.head, (("",),), _nothing, last=True)

    def _block(self, path: str, linears: Linears, context: Context, last: bool = False) -> None:
        """Solve one block, put its outputs in the place of the hidden states (unless `last`), write it and free it."""
        groups = full_paths(path, linears)
        module = self.load(path)
        solved: dict[str, Solved] = {}
        to_solve = {group: grid for group in groups if (grid := self.grids[group[0]]) is not None}
        if to_solve:
            hessians = self.hessians(path, to_solve, context)
            for group, grid in to_solve.items():
                weights = [self.model.get_parameter(f"{linear}.weight") for linear in group]
                found = solve_together(weights, hessians.pop(group), grid, self.settings.solver)
                for linear, weight, one in zip(group, weights, found, strict=True):
                    weight.copy_(one.weight)
                    self._report(linear, one)
                    solved[linear] = one
        if not last:
            self._advance(module, path, context)
        self._write_block(path, groups, solved)

    def _report(self, path: str, solved: Solved) -> None:
        about = (path, self.family.tower(path), tuple(solved.codes.shape), solved.grid.bits, solved.grid.group_size)
        self.journal.linears.append(LinearReport(*about, solved.error, solved.error_rtn, solved.damping))

    def hessians(
        self, path: str, groups: Iterable[tuple[str, ...]], context: Context
    ) -> dict[tuple[str, ...], torch.Tensor]:
        """Run all documents through a block and sum up the Hessian of what each group of its linears reads.

        Where norms follow the linears instead of preceding them, a token's error matters relative to the token: image
        tokens enter EXAONE's decoder many times larger than text, and would be all that its first Hessians see. Tokens
        are therefore scaled to the same size there.
        """
        hessians, hooks = {}, []
        for group in groups:
            linear = self.model.get_submodule(group[0])
            H = hessians[group] = torch.zeros(linear.in_features, linear.in_features, device=self.device)
            hooks.append(linear.register_forward_pre_hook(partial(self._listen, H, group[0])))
        module, states = self.model.get_submodule(path), self._states()
        for i in range(len(states)):
            module(self._input(path, states, i), **context(i))
        for hook in hooks:
            hook.remove()
        return hessians

    def _listen(self, H: torch.Tensor, path: str, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        X = inputs[0].reshape(-1, len(H))
        gptq.add_inputs(H, same_size(X) if self.family.is_post_norm(path) else X)

    def _advance(self, module: nn.Module, path: str, context: Context) -> None:
        """Run all documents through a finished block."""
        states, following = self._states(), None
        for i in range(len(states)):
            out = module(self._input(path, states, i), **context(i))
            out = out.reshape(-1, out.shape[-1])
            if following is None:
                shrunk = len(states[i]) // len(out)  # a merger makes one token of several patches
                following = self._new_states([length // shrunk for length in states.layout.lengths], out.shape[-1])
            following[i] = out
        assert following is not None
        self.journal.states = following.layout

    def _input(self, path: str, states: Activations, document: int) -> torch.Tensor:
        """What a block reads: patches [P, width] in the vision tower, a batch of one [1, T, width] elsewhere."""
        hidden = states[document].to(self.device)
        return hidden if self.family.tower(path) == "vision" else hidden[None]

    def _states(self) -> Activations:
        assert self.journal.states is not None
        return self._open(self.journal.states)

    def _open(self, layout: Layout) -> Activations:
        return Activations(self.folder, layout, self.settings.torch_dtype)

    def _new_states(self, lengths: list[int], width: int) -> Activations:
        return self._open(Layout(f"activations-{len(self.journal.steps)}", lengths, width))

    def _clear_states(self, *, keep: bool = True) -> None:
        """Remove hidden states that no step will read."""
        used = {layout.file for layout in (self.journal.states, self.journal.images) if layout and keep}
        for path in self.folder.glob("activations-*"):
            if path.name not in used:
                path.unlink()

    def clear(self) -> None:
        """Remove what only an unfinished run needs."""
        self._clear_states(keep=False)
        (self.folder / JOURNAL).unlink()

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


def _nothing(_: int) -> dict[str, Any]:
    return {}
