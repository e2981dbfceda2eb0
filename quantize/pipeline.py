"""Quantize a checkpoint, a block at a time.

The order of the blocks is that of data: vision tower, embeddings, decoder, MTP layer, head (`Pipeline.steps`). What
happens to one block is in `quantize.block`. Between blocks, the hidden states of all documents are in files. After
every step the journal is saved, so that a run that was killed can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from calib_data.sources import shortfall
from console.errors import CannotResumeError
from console.generation_config import read_generation_config
from console.progress import say
from quantize.block import BlockQuantizer, no_kwargs
from quantize.calibration.block_inputs import BlockInputs, make_block_inputs
from quantize.calibration.documents import DocumentSet, read_document_sets
from quantize.calibration.hidden_states import HiddenStates
from quantize.calibration.kv_ranges import KV_SCALES
from quantize.calibration.reference import write_reference
from quantize.checkpoint.reader import open_checkpoint
from quantize.checkpoint.writer import CheckpointWriter
from quantize.embeddings import embed_patches, embed_tokens, embedding_table, keep_image_tokens, token_embedder
from quantize.output import REPORT, TIMES, copy_companions, hash_companions, is_finished, output_folder, write_json
from quantize.report import Report
from quantize.scheme import check, make_scheme, output_config
from quantize.solver.solve import RECIPE, Recipe
from quantize.steps import Step, StepRunner

if TYPE_CHECKING:
    from pathlib import Path

    from quantize.block import Kwargs
    from quantize.journal import Journal
    from quantize.model.families import Linears
    from quantize.scheme import Scheme
    from quantize.settings import Settings


def quantize(settings: Settings, recipe: Recipe = RECIPE) -> Report | None:
    """Quantize a checkpoint into `settings.folder`. Returns None where that folder already holds the result.

    A run that was killed is resumed. Raises InputError where the input is wrong; nothing is left behind then, unless
    steps were finished.
    """
    checkpoint = open_checkpoint(settings.source)
    scheme = make_scheme(settings, checkpoint)
    read_generation_config(settings.source, scheme.config.get_text_config().vocab_size)  # a wrong one is refused here
    record = settings.record(checkpoint.fingerprint(), hash_companions(settings.source))
    if is_finished(
        settings.folder, record, lambda: _digests(*read_document_sets(settings, scheme.config, resumed=True))
    ):
        return None
    check(scheme)
    with output_folder(settings.folder, record) as (folder, journal):
        with CheckpointWriter(folder) as writer:
            pipeline = start(scheme, recipe, folder, journal, writer)
            pipeline.run()
            writer.finish()
        copy_companions(settings.source, folder)
        config = output_config(settings, checkpoint, scheme.family, scheme.quantizers, scheme.tied)
        write_json(folder / "config.json", config)
        report = _report(journal, pipeline.blocks.calibration.documents, writer.total_bytes)
        write_json(folder / REPORT, report.as_dict())
        write_json(folder / TIMES, report.times())
        write_json(folder / KV_SCALES, dict(journal.kv_ranges))
    return report


@dataclass(frozen=True)
class Pipeline:
    """One pass over a model, from the pixels to the head."""

    blocks: BlockQuantizer
    """Quantizes one block after the other."""
    runner: StepRunner
    """Runs the steps that are not done yet."""
    splits: list[BlockInputs]
    """The calibration set, and the evaluation set where there is one."""

    @torch.no_grad()
    def run(self) -> None:
        """Run all steps that are not done yet."""
        steps, done = self.steps(), len(self.runner.journal.steps)
        say(f"{done} of {len(steps)} steps are done, resuming" if done else self._disk_space())
        self.runner.run(steps)

    def steps(self) -> list[Step]:
        """List all steps, in the order in which data passes through the model."""
        family, config = self.blocks.scheme.family, self.blocks.scheme.config
        steps: list[Step] = []
        if family.patch_embed and family.merger:
            steps.append((family.patch_embed, partial(embed_patches, self.blocks, self.splits, family.patch_embed)))
            for i, path in enumerate(family.vision_blocks(config)):
                steps.append((path, partial(self._block, path, family.vision_linears, partial(_vision_kwargs, i))))
            steps.append((family.merger, partial(self._block, family.merger, family.merger_linears, no_kwargs)))
            steps.append(("image tokens", partial(keep_image_tokens, self.splits)))
        steps.append((family.embeddings, partial(embed_tokens, self.blocks, self.splits)))
        for i, path in enumerate(family.decoder_blocks(config)):
            steps.append((path, partial(self._decoder_layer, path, partial(_decoder_kwargs, i))))
        steps.append((family.norm, partial(self._block, family.norm, (), no_kwargs)))
        if family.mtp and family.mtp_layers(config):
            steps.append((family.mtp, partial(self._mtp, family.mtp)))
        steps.append((family.head, self._head))
        return [*steps, ("the rest", self._copy_rest)]

    def _block(self, path: str, linears: Linears, kwargs: Kwargs, *, last: bool = False) -> None:
        self.runner.journal.linears += self.blocks.quantize(path, linears, kwargs, last=last)

    def _decoder_layer(self, path: str, kwargs: Kwargs) -> None:
        """Quantize a decoder layer, and keep the ranges of its keys and values, before and after it was quantized."""
        recorder = self.blocks.calibration.decoder.recorder
        recorder.maxima.clear()
        self._block(path, self.blocks.scheme.family.decoder_linears, kwargs)
        self.runner.journal.kv_ranges[path] = recorder.ranges()

    def _mtp(self, path: str) -> None:
        """Quantize the MTP layer on the decoder's last hidden states and the embeddings of the tokens that follow."""
        scheme = self.blocks.scheme
        embed = token_embedder(self.blocks.calibration, embedding_table(self.blocks))

        def kwargs(inputs: BlockInputs, i: int) -> dict[str, Any]:
            return {"embeddings": embed(i)[None].to(scheme.settings.device), **inputs.decoder.mtp_kwargs(i)}

        self._block(path, scheme.family.mtp_linears(scheme.config), kwargs, last=True)

    def _head(self) -> None:
        """Keep what the head predicts on the evaluation documents, and quantize it."""
        blocks, head = self.blocks, self.blocks.scheme.family.head
        if blocks.evaluation is not None:
            write_reference(self.runner.folder, blocks.evaluation, blocks.load(head))
            blocks.free(head)
        self._block(head, (("",),), no_kwargs, last=True)

    def _copy_rest(self) -> None:
        """Copy tensors that no module has, in the new dtype; linears that read the same inputs lie side by side."""
        scheme = self.blocks.scheme
        known = {name for name, _ in scheme.model.named_parameters(remove_duplicate=False)}
        rest = [name for name in scheme.checkpoint.tensors if name not in known]
        linears = [f".{linear}." for group in scheme.family.decoder_linears for linear in group]
        rank = {name: next((i for i, linear in enumerate(linears) if linear in name), len(linears)) for name in rest}
        for name in sorted(rest, key=lambda name: (rank[name], name)):
            tensor = self.blocks.read(name)
            convert = tensor.is_floating_point() and tensor.dtype.itemsize > 1
            self.blocks.writer.write([(name, tensor.to(scheme.settings.torch_dtype) if convert else tensor)])

    def _disk_space(self) -> str:
        """Say how much disk space hidden states take, and whether there are fewer documents than asked for."""
        settings, count = self.blocks.scheme.settings, len(self.blocks.calibration.documents)
        needed = sum(inputs.documents.bytes_needed() for inputs in self.splits)
        if self.blocks.unquantized:
            needed += self.blocks.unquantized.documents.bytes_needed(images=False)
        fewer = shortfall(settings.documents, "calibration", count, settings.count)
        return f"{count} documents{fewer}; hidden states take up to {needed / 2**20:.1f} MiB in {self.runner.folder}"


def start(scheme: Scheme, recipe: Recipe, folder: Path, journal: Journal, writer: CheckpointWriter) -> Pipeline:
    """Read the documents and start a run, or resume the one that the journal has.

    Raises InputError where documents cannot be read, CannotResumeError where they have changed since the run began.
    """
    if journal.writer:
        writer.resume(journal.writer)
    settings, resumed = scheme.settings, bool(journal.steps)
    calibration, evaluation = read_document_sets(settings, scheme.config, resumed=resumed)
    digests = _digests(calibration, evaluation)
    if resumed and digests != journal.documents:
        raise CannotResumeError(
            f"the documents of {settings.documents} have changed since this run began; restore them, or give another "
            f"--output or remove {folder}"
        )
    journal.documents = digests
    splits = [
        _inputs(documents, scheme, folder, journal) for documents in (calibration, evaluation) if documents is not None
    ]
    corrects = recipe.input_errors and settings.solver == "gptq" and settings.bits == 4
    unquantized = _inputs(calibration, scheme, folder, journal, "unquantized") if corrects else None
    blocks = BlockQuantizer(scheme, recipe, writer, splits[0], splits[1] if len(splits) > 1 else None, unquantized)
    streams = [inputs.states for inputs in (*splits, unquantized) if inputs]
    return Pipeline(blocks, StepRunner(folder, journal, writer, streams, settings.device), splits)


def _inputs(
    documents: DocumentSet, scheme: Scheme, folder: Path, journal: Journal, stream: str | None = None
) -> BlockInputs:
    """Make the inputs of the block that comes next. stream: by default, the split of the documents.

    A step writes at most one file of hidden states a stream, so the number of steps gives it a new name.
    """
    stream = stream or documents.split
    layouts = journal.states.get(stream), journal.images.get(stream)
    states = HiddenStates(stream, folder, documents.dtype, len(journal.steps), *layouts)
    return make_block_inputs(documents, states, scheme.model, scheme.family, torch.device(scheme.settings.device))


def _digests(calibration: DocumentSet, evaluation: DocumentSet | None) -> dict[str, str]:
    return {documents.split: documents.digest for documents in (calibration, evaluation) if documents is not None}


def _report(journal: Journal, calibration: DocumentSet, total_bytes: int) -> Report:
    tokens = sum(len(ids) for ids in calibration.ids)
    counts = (len(calibration), tokens, total_bytes)
    return Report(journal.settings, journal.linears, journal.steps, *counts, journal.documents)


def _vision_kwargs(block: int, inputs: BlockInputs, i: int) -> dict[str, Any]:
    assert inputs.vision is not None
    return inputs.vision.kwargs(block, i)


def _decoder_kwargs(layer: int, inputs: BlockInputs, i: int) -> dict[str, Any]:
    return inputs.decoder.kwargs(layer, i)
