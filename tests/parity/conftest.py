"""Documents with their answers, and the bundled reader in transformers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
)

from calib_data import READER
from calib_data.document import Document
from calib_data.sources import open_documents
from runtime.model import Model


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    return open_documents("rendered", split="evaluation", count=20, seed=3)


@pytest.fixture(scope="session")
def reference() -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(READER, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def answered(documents: list[Document], exported: Callable[[str], Path]) -> list[tuple[Document, list[int]]]:
    chat = Model(exported("fp16"), "cpu").chat
    return [(document, [*chat.encode_text(document.answer), 53]) for document in documents[:4]]
