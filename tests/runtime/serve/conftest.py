"""One server for all tests of a process, and OpenAI's client for it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from .server import Server, running


@pytest.fixture(scope="session")
def server(exported: Callable[[str], Path]) -> Iterator[Server]:
    """The fp16 reader on the CPU, with four rows."""
    with running(exported("fp16"), "--max-rows", 4, "--max-context", 2048) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    """OpenAI's client; it repeats nothing by itself."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
