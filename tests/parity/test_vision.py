"""Parity of the vision encoder: transformers, the PyTorch module, ONNX Runtime."""

import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
)

from calib_data import READER
from calib_data.document import Document
from export.modules.vision import VisionEncoder
from export.modules.weights import Source
from export.onnx_graph import save
from export.trace import trace_vision
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import find_family, model_config
from runtime.inputs.images import preprocess
from runtime.inputs.vision import VisionSession, vision_feeds
from runtime.model import Model
from runtime.ort import graph_io
from runtime.ort.device import Device
from runtime.ort.sessions import open_session

from .references import VISION, eager, relative_error

GRIDS = [(1, 12, 10), (1, 2, 2), (1, 2, 34), (1, 40, 2), (2, 16, 24), (8, 10, 12)]  # one token, row, column, 16 frames
RANDOM_GRIDS = 40
TOGETHER = [(1, 2, 2), (1, 32, 26), (16, 4, 6)]  # one token next to 208, and 16 frames of six


@pytest.fixture(scope="module")
def cuda_vision(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> VisionSession:
    """The reader's vision graph for CUDA, but in float32 and on the CPU."""
    folder = tmp_path_factory.mktemp("vision")
    for file in exported("fp16").glob("*.safetensors"):
        shutil.copy(file, folder)
    checkpoint = open_checkpoint(exported("fp16"))
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    vision = VisionEncoder(
        Source(checkpoint, load=False, exact=True), family, config, on_cuda=True, dtype=torch.float32
    )
    save(trace_vision(vision, config), vision, folder / "vision.onnx")
    return VisionSession(open_session(folder / "vision.onnx", Device("cpu")))


@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_vision_transformers_eager_onnx(grid, reference, exported):
    frames, rows, columns = grid
    patches = torch.randn(frames * rows * columns, 1176, generator=torch.Generator().manual_seed(0))
    expected = reference.model.visual(patches, grid_thw=torch.tensor([grid])).pooler_output
    model = Model(exported("fp16"), "cpu")
    feeds = vision_feeds(patches.numpy(), [grid], model.manifest.vision)
    _, module = eager(exported("fp16"))
    in_eager = module(*(torch.from_numpy(feeds[name]) for name in graph_io.VISION_INPUTS))
    assert relative_error(in_eager, expected) < VISION
    assert relative_error(model.vision.run(feeds), in_eager) < VISION


@pytest.fixture(scope="module")
def pages(documents: list[Document], exported: Callable[[str], Path]) -> np.ndarray:
    """Patches of pages: on noise transformers' own float32 is up to 4e-4 from its float64."""
    settings = Model(exported("fp16"), "cpu").image_settings
    return np.concatenate([preprocess(document.image, settings, "")[0] for document in documents])


@pytest.fixture(scope="module")
def exact_vision() -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(READER, dtype=torch.float64).model.visual.eval()


@torch.no_grad()
def test_one_vision_graph_serves_any_grids(pages, exact_vision, exported):
    """Images of up to 24 x 24 patches, and of up to three frames; one to three of different size in a call."""
    model, choose = Model(exported("fp16"), "cpu"), random.Random(0)
    drawn = [
        (choose.choice((1, 1, 2, 3)), 2 * choose.randint(1, 12), 2 * choose.randint(1, 12)) for _ in range(RANDOM_GRIDS)
    ]
    calls = [*([grid] for grid in drawn[:22]), *(drawn[i : i + 3] for i in range(22, RANDOM_GRIDS, 3)), TOGETHER]
    for seed, grids in enumerate(calls):
        patches = pages[(np.arange(sum(map(math.prod, grids))) + 97 * seed) % len(pages)]
        expected = exact_vision(torch.from_numpy(patches).double(), grid_thw=torch.tensor(grids)).pooler_output
        found = model.vision.run(vision_feeds(patches, grids, model.manifest.vision))
        assert relative_error(found, expected) < VISION, grids


@torch.no_grad()
@pytest.mark.parametrize("grids", [*([grid] for grid in GRIDS), TOGETHER], ids=str)
def test_cudas_vision_graph_does_not_rely_on_lengths(grids, pages, exact_vision, exported, cuda_vision):
    """CUDA's kernel takes rows without a past as full, so the CPU's kernel gets full lengths here."""
    patches = pages[: sum(map(math.prod, grids))]
    expected = exact_vision(torch.from_numpy(patches).double(), grid_thw=torch.tensor(grids)).pooler_output
    feeds = vision_feeds(patches, grids, Model(exported("fp16"), "cpu").manifest.vision)
    for rows in ("window", "frame"):
        feeds[f"{rows}_lengths"][:] = feeds[f"{rows}_gather"].shape[1]
    assert relative_error(cuda_vision.run(feeds), expected) < VISION
