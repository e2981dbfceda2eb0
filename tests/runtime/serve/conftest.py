"""One server for all tests of a process, and OpenAI's client for it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from .requests import OFF, USER
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


@pytest.fixture
def chat(client: openai.OpenAI) -> Callable[..., Any]:
    """Create a chat completion; what OpenAI's client does not know goes into `extra`."""

    def create(messages: Any = USER, extra: Any = OFF, **options: Any) -> Any:
        options = {"model": "fp16-cpu-exact=True", "max_tokens": 24} | options
        return client.chat.completions.create(messages=messages, extra_body=extra, **options)

    return create
