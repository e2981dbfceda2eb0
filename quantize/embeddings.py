"""The first hidden states of the vision tower and of the decoder: embedded patches, and embedded tokens and images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quantize.block import BlockQuantizer
    from quantize.calibration.block_inputs import BlockInputs


def embed_patches(blocks: BlockQuantizer, splits: Sequence[BlockInputs], path: str) -> None:
    """Embed the image patches of all documents, and write the module at `path` that does."""
    patch_embed, device = blocks.load(path), blocks.scheme.settings.device
    width = blocks.scheme.config.vision_config.hidden_size
    for inputs in splits:
        assert inputs.vision is not None
        vision, patches = inputs.vision, inputs.documents.patches()
        embedded = (vision.to_windows(patch_embed(each.to(device)), i) for i, each in enumerate(patches))
        inputs.states.write(embedded, [int(grid.prod(-1).sum()) for grid in vision.grids], width)
    blocks.write(path, (), {})
    blocks.free(path)


def keep_image_tokens(splits: Sequence[BlockInputs]) -> None:
    """Put the outputs of the vision tower into reading order, and keep them as image tokens."""
    for inputs in splits:
        assert inputs.vision is not None
        vision, merged = inputs.vision, inputs.states.read()
        images = (vision.to_reading_order(merged[i], i) for i in range(len(merged)))
        inputs.states.write_images(images, merged.layout.lengths, merged.layout.width)


def embed_tokens(blocks: BlockQuantizer, splits: Sequence[BlockInputs]) -> None:
    """Embed the tokens of all documents, and write the embedding table."""
    table = embedding_table(blocks)
    for inputs in splits:
        embed = token_embedder(inputs, table)
        states = (embed(i) for i in range(len(inputs.documents)))
        inputs.states.write(states, [len(ids) for ids in inputs.documents.ids], table.shape[1])
    if blocks.unquantized:  # up to here, the same
        embedded = blocks.calibration.states.read()
        same = (embedded[i] for i in range(len(embedded)))
        blocks.unquantized.states.write(same, embedded.layout.lengths, embedded.layout.width)
    blocks.writer.write([(f"{blocks.scheme.family.embeddings}.weight", table)])


def embedding_table(blocks: BlockQuantizer) -> torch.Tensor:
    """Read the token embeddings [V, width] in the new dtype."""
    return blocks.read(f"{blocks.scheme.family.embeddings}.weight").to(blocks.scheme.settings.torch_dtype)


def token_embedder(inputs: BlockInputs, table: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """Return a function that embeds a document, image tokens included: [T, width] float32."""
    documents, images = inputs.documents, inputs.states.read_images()
    used = torch.cat(documents.ids).unique()
    rows = table[used]  # a copy, so that the function does not keep the table in memory

    def embed(document: int) -> torch.Tensor:
        ids = documents.ids[document]
        states = rows[torch.searchsorted(used, ids)].float()
        if images is not None:
            states[ids == documents.config.image_token_id] = images[document]
        return states

    return embed
