"""From a checkpoint to a quantized one, a block at a time.

The memory rule lives here: one block's weights and its Hessians are in memory, however many layers the model has; the
hidden states of the documents are in files. A block is loaded, the calibration documents run through it, its linears
are solved, the documents run through what it has become, and it is written and freed. Evaluation documents run through
the blocks as they were, and into reference.npz. After every step the journal says how far the run has come, so that a
run that was killed goes on there.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from calib_data.sources import shortfall
from console.errors import CannotResumeError, EmptySplitError, InputError
from console.progress import say, track
from quantize.calibration.documents import Documents
from quantize.calibration.hidden_states import keep_only
from quantize.calibration.kv_ranges import KV_SCALES
from quantize.calibration.overflow import within_range
from quantize.calibration.reference import ROWS, likeliest, write_reference
from quantize.checkpoint.formats import described, neighbours, stored
from quantize.checkpoint.reader import Checkpoint, open_checkpoint
from quantize.checkpoint.writer import CheckpointWriter
from quantize.model.families import Family, find_family, full_paths, model_config
from quantize.out_of_memory import out_of_memory_named
from quantize.output import REPORT, TIMES, copy_companions, hash_companions, is_finished, output_folder, write_json
from quantize.report import LinearReport, Report, StepReport, peak_mib
from quantize.scheme import check, has_mtp, is_tied, output_config, plan_grids
from quantize.solver.hessians import Group, Hessians
from quantize.solver.solve import RECIPE, Recipe, Solved, solve_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedConfig

    from quantize.journal import Journal
    from quantize.model.families import Linears
    from quantize.settings import Settings

    Context = Callable[[Documents, int], dict[str, Any]]  # what a block wants beside the hidden states of a document
    Named = list[tuple[str, torch.Tensor]]
    Steps = list[tuple[str, Callable[[], None]]]


def quantize(settings: Settings, recipe: Recipe = RECIPE) -> Report | None:
    """Quantize a checkpoint into `settings.folder`. Returns None when that folder already holds the result.

    A run that was killed goes on where it was. Raises InputError for whatever is wrong with the input; nothing is left
    behind then, unless steps were finished.
    """
    checkpoint = open_checkpoint(settings.model)
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    if family.mtp_layers(config) and not has_mtp(checkpoint, family):
        config.get_text_config().num_nextn_predict_layers = 0
        say(f"{settings.model} has no MTP layer, as when transformers has saved it; none is written")
    if checkpoint.config.get("quantization_config") is not None:
        raise InputError(f"{settings.model} is quantized already; give the original checkpoint")
    record = settings.record(checkpoint.fingerprint(), hash_companions(settings.model))
    walk = Walk(settings, checkpoint, family, config, recipe)
    if is_finished(settings.folder, record, walk.read_documents):
        return None
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
    return report


class Walk:
    """One pass over a model, from the pixels to the head."""

    def __init__(
        self,
        settings: Settings,
        checkpoint: Checkpoint,
        family: Family,
        config: PreTrainedConfig,
        recipe: Recipe = RECIPE,
    ) -> None:
        self.settings, self.checkpoint, self.family, self.config = settings, checkpoint, family, config
        self.recipe, self.device = recipe, torch.device(settings.device)
        self.model = family.skeleton(config)
        self.tied = is_tied(checkpoint, family, config)
        self.grids = plan_grids(settings, family, config)
        self.calibration = Documents("calibration", settings, self.model, family, settings.torch_dtype)
        self.evaluation = Documents("evaluation", settings, self.model, family, torch.float32)

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
        for documents in (self.calibration, self.evaluation):
            documents.begin(folder, journal)
        digests = self.read_documents(new=not journal.steps)
        if journal.steps and digests != journal.documents:
            source = self.settings.documents
            raise CannotResumeError(
                f"the documents of {source} have changed since this run began; restore them, or give another --output "
                f"or remove {folder}"
            )
        journal.documents = digests
        return [*self._vision_steps(), *self._decoder_steps(), ("the rest", self._copy_rest)]

    def do(self, name: str, step: Callable[[], None]) -> None:
        """Do one step and say so in the journal. Raises InputError where it does not fit in memory."""
        keep_only(self.folder, (*self.journal.states.values(), *self.journal.images.values()))
        started = time.perf_counter()
        with out_of_memory_named(name, self.device):
            step()
        self.journal.steps.append(StepReport(name, round(time.perf_counter() - started, 3), peak_mib()))
        self.journal.writer = self.writer.state()
        self.journal.save(self.folder)

    def report(self, total_bytes: int) -> Report:
        """Say what came out, once everything has run."""
        tokens = sum(len(ids) for ids in self.calibration.ids)
        journal = self.journal
        counts = (len(self.calibration), tokens, total_bytes)
        return Report(journal.settings, journal.linears, journal.steps, *counts, journal.documents)

    def _vision_steps(self) -> Steps:
        """Run the documents' images through the vision tower."""
        family = self.family
        if family.merger is None or family.patch_embed is None:
            return []
        steps: Steps = [(family.patch_embed, partial(self._embed_patches, family.patch_embed))]
        for i, path in enumerate(family.vision_blocks(self.config)):
            steps.append((path, partial(self._block, path, family.vision_linears, partial(_vision_context, i))))
        steps.append((family.merger, partial(self._block, family.merger, family.merger_linears, _nothing)))
        return [*steps, ("image tokens", self._keep_images)]

    def _decoder_steps(self) -> Steps:
        """Run the documents, image tokens included, through the decoder and into the head."""
        family = self.family
        steps: Steps = [(family.embeddings, self._embed)]
        for i, path in enumerate(family.decoder_blocks(self.config)):
            steps.append((path, partial(self._decoder_block, path, partial(_decoder_context, i))))
        steps.append((family.norm, partial(self._block, family.norm, (), _nothing)))
        if family.mtp and family.mtp_layers(self.config):
            steps.append((family.mtp, partial(self._mtp, family.mtp)))
        return [*steps, (family.head, self._head)]

    def read_documents(self, new: bool = False) -> dict[str, str]:
        """Read the documents of both splits and give their digests. new: a run that can still have other settings."""
        self.calibration.read()
        self.streams = [self.calibration]
        if self.settings.reference and self._read_evaluation(new):
            self.streams.append(self.evaluation)
        return {documents.split: documents.digest for documents in self.streams}

    def _read_evaluation(self, new: bool) -> bool:
        """Tell whether there are evaluation documents to go with."""
        try:
            self.evaluation.read()
        except EmptySplitError as error:
            say(f"no reference.npz: {error}")
            return False
        except InputError as error:
            if not new:
                raise
            raise InputError(f"{error}; or give --reference 0, which does without evaluation documents") from None
        if not len(self.evaluation):
            say(f"no reference.npz: no evaluation document of {self.settings.documents} has a true answer")
        return len(self.evaluation) > 0

    def _disk_needed(self) -> str:
        """How much disk space the hidden states take, and whether documents are fewer than wanted."""
        needed = sum(documents.bytes_needed() for documents in self.streams) / 2**20
        found = len(self.calibration)
        fewer = shortfall(self.settings.documents, "calibration", found, self.settings.count)
        return f"{found} documents{fewer}; hidden states take up to {needed:.1f} MiB in {self.folder}"

    def _embed_patches(self, path: str) -> None:
        patch_embed, width = self.load(path), self.config.vision_config.hidden_size
        for documents in self.streams:
            vision = documents.vision
            assert vision is not None
            patches = (vision.windowed(patch_embed(patches), i) for i, patches in enumerate(documents.patches()))
            documents.keep(patches, [int(grid.prod(-1).sum()) for grid in vision.grids], width)
        self._write_block(path, (), {})

    def _keep_images(self) -> None:
        """Put image tokens in reading order."""
        for documents in self.streams:
            merged, vision = documents.states, documents.vision
            assert vision is not None
            images = (vision.image_tokens(merged[i], i) for i in range(len(merged)))
            documents.keep_images(images, merged.layout.lengths, merged.layout.width)

    def _embed(self) -> None:
        """Take the documents' embeddings as the decoder's input, and write the table."""
        table = self._embedding_table()
        for documents in self.streams:
            embedded = self._embedder(documents, table)
            states = (embedded(i) for i in range(len(documents)))
            documents.keep(states, [len(ids) for ids in documents.ids], table.shape[1])
        self._write([(f"{self.family.embeddings}.weight", table)])

    def _embedding_table(self) -> torch.Tensor:
        return self._read(f"{self.family.embeddings}.weight").to(self.settings.torch_dtype)

    def _embedder(self, documents: Documents, table: torch.Tensor) -> Callable[[int], torch.Tensor]:
        """What gives a document's embeddings [T, width], image tokens included."""
        images, used = documents.images, torch.cat(documents.ids).unique()
        rows = table[used]  # so that whoever keeps what is returned does not keep the table

        def embedded(document: int) -> torch.Tensor:
            ids = documents.ids[document]
            states = rows[torch.searchsorted(used, ids)].float()
            if images is not None:
                states[ids == self.config.image_token_id] = images[document]
            return states

        return embedded

    def _decoder_block(self, path: str, context: Context) -> None:
        """Solve a decoder layer, and keep how large its keys and values were, before and after it was quantized."""
        recorder = self.calibration.decoder.recorder
        recorder.largest.clear()
        self._block(path, self.family.decoder_linears, context)
        self.journal.kv_ranges[path] = recorder.ranges()

    def _mtp(self, path: str) -> None:
        """Solve the MTP layer on the decoder's last hidden states and the embeddings of the tokens that follow."""
        linears = self.family.mtp_linears(self.config)
        embedded = self._embedder(self.calibration, self._embedding_table())

        def context(documents: Documents, i: int) -> dict[str, Any]:
            return {"embeddings": embedded(i)[None].to(self.device), **documents.decoder.mtp_context(i)}

        self._block(path, linears, context, last=True)

    def _head(self) -> None:
        """Keep what the head predicts for the evaluation documents, and solve it."""
        if self.evaluation in self.streams:
            self._keep_reference()
        self._block(self.family.head, (("",),), _nothing, last=True)

    def _keep_reference(self) -> None:
        documents, head = self.evaluation, self.load(self.family.head)
        states, predicted = documents.states, []
        for i, answer in enumerate(documents.answers):
            rows = states[i][-answer - 1 : -1].to(self.device)
            predicted += [likeliest(head(some)) for some in rows.split(ROWS)]
        head.to("meta")
        settings = documents.settings
        source = {"source": settings.documents, "count": settings.reference, "seed": settings.seed}
        write_reference(self.folder, documents, predicted, source)

    def _block(self, path: str, linears: Linears, context: Context, last: bool = False) -> None:
        """Solve one block, put its outputs in the place of the hidden states (unless `last`), write it and free it."""
        groups = full_paths(path, linears)
        module = self.load(path)
        if self.evaluation in self.streams and not last:
            self._advance(self.evaluation, module, path, context)
        solved: dict[str, Solved] = {}
        to_solve = {group: grid for group in groups if (grid := self.grids[group[0]]) is not None}
        if to_solve or last:  # where nothing runs behind it, this also tells whether 16 bits hold what it computes
            hessians = self.hessians(path, to_solve, context)
        for group, grid in to_solve.items():
            weights = [self.model.get_parameter(f"{linear}.weight") for linear in group]
            found = solve_together(weights, hessians.pop(group), grid, self.settings.solver, self.recipe)
            for linear, weight, one in zip(group, weights, found, strict=True):
                weight.copy_(one.weight)
                self._report(linear, one)
                solved[linear] = one
        if not last:
            self._advance(self.calibration, module, path, context)
        if solved or path != self.family.head or not self.tied:
            self._write_block(path, groups, solved)

    def _report(self, path: str, solved: Solved) -> None:
        if solved.solver != self.settings.solver:
            say(f"{path} is rounded to nearest: its inputs are so large that its Hessian has no factor in float32")
        elif solved.error is None:
            say(f"{path}: its Hessian is not positive semidefinite in float32, so that its error is not known")
        about = (path, self.family.tower(path), tuple(solved.codes.shape), solved.grid.bits, solved.grid.group_size)
        results = (solved.solver, solved.error, solved.error_rtn, solved.damping)
        self.journal.linears.append(LinearReport(*about, *results))

    def hessians(self, path: str, groups: Iterable[tuple[str, ...]], context: Context) -> dict[Group, torch.Tensor]:
        """Run the calibration documents through a block; the Hessian of what each group of its linears reads."""
        collected = Hessians(self.model, list(groups), self.family, self.recipe.tokens)
        module, states = self.model.get_submodule(path), self.calibration.states
        with collected.listening(), within_range(module, path, self.settings.torch_dtype):
            for i in range(len(states)):
                arguments = context(self.calibration, i)
                module(self._input(path, states[i].to(self.device)), **arguments)
                collected.add(arguments.get("importance"))
        collected.check()
        return collected.sums

    def _advance(self, documents: Documents, module: nn.Module, path: str, context: Context) -> None:
        """Run documents through a block."""

        def run(states: torch.Tensor, i: int) -> torch.Tensor:
            out: torch.Tensor = module(self._input(path, states), **context(documents, i))
            return out.reshape(-1, out.shape[-1])

        with within_range(module, path, documents.dtype):
            documents.advance(run)

    def _input(self, path: str, states: torch.Tensor) -> torch.Tensor:
        """What a block reads: patches [P, width] in the vision tower, a batch of one [1, T, width] elsewhere."""
        return states if self.family.tower(path) == "vision" else states[None]

    def _read(self, name: str) -> torch.Tensor:
        """Read a tensor as it is stored. Raises InputError when it is not finite or the output dtype cannot hold it."""
        if self.tied and name == f"{self.family.head}.weight":
            name = f"{self.family.embeddings}.weight"
        return self.checkpoint.load_for(name, self.settings.torch_dtype)

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
        parts: dict[str, dict[str, torch.Tensor]] = {}
        small: Named = []
        for linear in sum(groups, ()):
            weight, bias = state.pop(f"{linear}.weight"), state.pop(f"{linear}.bias", None)
            if quantized := solved.get(linear):
                solution = (quantized.codes, quantized.scales, quantized.grid)
                parts[linear] = stored(*solution, self.settings.format)
                about = described(*solution, self.settings)
                small += [(f"{linear}.{key}", tensor) for key, tensor in about.items()]
            else:
                parts[linear] = {"weight": weight.to(dtype)}
            if bias is not None:
                parts[linear]["bias"] = bias.to(dtype)
        rest = [(name, tensor.to(dtype)) for name, tensor in state.items()]
        self._write([*neighbours(groups, parts), *rest], small)
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


def _nothing(_: Documents, __: int) -> dict[str, Any]:
    return {}


def _vision_context(block: int, documents: Documents, i: int) -> dict[str, Any]:
    assert documents.vision is not None
    return documents.vision.context(block, i)


def _decoder_context(block: int, documents: Documents, i: int) -> dict[str, Any]:
    return documents.decoder.context(block, i)
