"""The runners that take turns: our runtime in this process, llama.cpp in others; and the memory bandwidth."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bench.llama_cpp.model import checkpoint, weight_bytes
from bench.peers.environments import Peer, environment
from console.errors import InputError
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.model import Model
from runtime.ort.sessions import Options
from runtime.prompt import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

LLAMA_CPP = Peer("llama.cpp", "llama_cpp", ("llama-cpp-python==0.3.36", "gguf==0.19.0"))
READ_BYTES = 2**28


@dataclass(frozen=True)
class Task:
    """The work of a turn."""

    prompt: list[int]
    """Token ids."""
    new_tokens: int
    """Tokens to generate greedily."""


@dataclass(frozen=True)
class Turn:
    """Tokens a second of a turn."""

    prompt: float
    """Of the prompt, up to the first new token."""
    decode: float
    """Of all further new tokens."""


def clock(threads: int) -> Callable[[], float]:
    """Processor time for one thread, as other load changes it little; wall-clock time for several."""
    return process_time if threads == 1 else perf_counter


class Runner(Protocol):
    """One row of the table."""

    name: str
    weight_bytes: int
    """Bytes of the weights that a step reads."""
    logits: NDArray[np.float32]
    """Logits [V] after the prompt of the last turn."""

    def turn(self, task: Task) -> Turn:
        """Do the task once."""
        ...


class Ours:
    """Our runtime, as `runtime generate` runs it."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name, self.weight_bytes = name, weight_bytes(folder)
        self._model = Model(folder, "cpu", Options(threads=threads))
        self._clock, self.logits = clock(threads), np.empty(0, np.float32)

    def turn(self, task: Task) -> Turn:
        """Do the task once."""
        start, ids = self._clock(), np.array(task.prompt)
        tokens = generate(self._model, Prompt(ids, self._model.embed_tokens(ids)), self._sample, task.new_tokens)
        next(tokens)
        first = self._clock()
        if sum(1 for _ in tokens) != task.new_tokens - 1:
            raise InputError("the random model ended its answer early; give another --seed")
        return rates(task, first - start, self._clock() - first)

    def _sample(self, logits: NDArray[np.float32], generated: Sequence[int]) -> int:
        if not generated:
            self.logits = logits
        return greedy(logits, generated)


class LlamaCpp:
    """llama.cpp in an environment of its own.

    head: type of its output tensor, or "default". huge_pages: whether its allocations are on huge pages, as ours are by
    `runtime.ort.huge_pages`. sequences: most prompts at a time. unified: whether they share one KV buffer.
    """

    def __init__(
        self,
        name: str,
        cache: Path,
        head: str,
        threads: int,
        *,
        huge_pages: bool = False,
        sequences: int = 1,
        unified: bool = False,
    ) -> None:
        self.name = name
        self._python, self._script = environment(LLAMA_CPP, cache.parent), __file__.replace("runners.py", "peer.py")
        self._log = cache / f"{name}.log"
        model = cache / f"exaone4-{head}.gguf"
        if not model.exists():
            self._start("convert", str(checkpoint(cache)), str(model), head).wait()
        settings = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if huge_pages else {}
        self._process = self._start("run", str(model), str(threads), str(sequences), str(int(unified)), **settings)
        self.weight_bytes: int = self._read()["bytes"]

    def _start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        command = [str(self._python), "-E", self._script, *arguments]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with self._log.open("a") as log:
            return subprocess.Popen(command, stderr=log, env=os.environ | settings, **pipes)

    def _read(self) -> dict[str, Any]:
        """The next line of the process."""
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise InputError(f"{self.name} ended early; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def answer(self, prompts: Sequence[list[int]], new_tokens: int) -> dict[str, Any]:
        """Read prompts one after another, then decode them together.

        Returns seconds up to the `first` token of each, seconds to `decode` all others, `logits` [V] after prompt 0.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([prompts, new_tokens]) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


class Theirs:
    """One sequence in llama.cpp."""

    def __init__(self, name: str, cache: Path, head: str, threads: int, *, huge_pages: bool) -> None:
        self._peer = LlamaCpp(name, cache, head, threads, huge_pages=huge_pages)
        self.name, self.weight_bytes, self.logits = name, self._peer.weight_bytes, np.empty(0, np.float32)
        self.close = self._peer.close

    def turn(self, task: Task) -> Turn:
        """Do the task once."""
        answer = self._peer.answer([task.prompt], task.new_tokens)
        self.logits = np.array(answer["logits"], np.float32)
        return rates(task, answer["first"][0], answer["decode"])


def rates(task: Task, prompt_seconds: float, decode_seconds: float) -> Turn:
    """The speeds of a turn."""
    return Turn(len(task.prompt) / prompt_seconds, (task.new_tokens - 1) / decode_seconds)


class Memory:
    """An array that no cache holds; each thread reads a part of it."""

    def __init__(self, threads: int) -> None:
        self._parts = np.ones((threads, READ_BYTES // 4 // threads), np.float32)
        self._pool, self._clock = ThreadPoolExecutor(threads), clock(threads)

    def bandwidth(self) -> float:
        """Bytes a second, the best of three reads."""
        seconds = []
        for _ in range(3):
            start = self._clock()
            list(self._pool.map(np.max, self._parts))
            seconds.append(self._clock() - start)
        return self._parts.nbytes / min(seconds)
