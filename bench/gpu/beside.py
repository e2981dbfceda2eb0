"""Beside transformers: four layers of the released widths, a step and a prompt after the same context, as ratios."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, StaticCache

from bench.gpu.figures import WARM_UP, Figure, Timing, timed
from bench.gpu.folders import FOUR_LAYERS, TINY, folder_of
from quantize.model.families import model_config
from runtime.decoding.forward import prefill
from runtime.model import Model
from runtime.ort.sessions import Options
from runtime.prompt import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.gpu.bench import Bench

CONTEXT, CONTEXT_TINY = 4096, 64
STEPS = 100  # at most
KERNELS = """
import sys
if sys.argv[4]:
    import torch  # and its cuDNN, which ONNX Runtime then finds
import numpy as np
from pathlib import Path
from runtime.decoding.generate import generate
from runtime.model import Model
from runtime.prompt import Prompt
model = Model(Path(sys.argv[1]), sys.argv[2])
tokens = int(sys.argv[3])
prompt = Prompt(np.zeros(tokens, np.int64), model.embed_tokens(np.zeros(tokens, np.int64)))
list(generate(model, prompt, lambda *_: 100, 3))
"""


def measure(bench: Bench) -> Iterator[Figure]:
    """Ours in 4 bits, transformers in bfloat16, with torch.compile off and on; and what attention ran on."""
    shape = TINY if bench.tiny else FOUR_LAYERS
    context, folder = CONTEXT_TINY if bench.tiny else CONTEXT, folder_of(bench, shape)
    ours = _ours(bench, folder, context)
    for part, timing in ours.items():
        yield Figure.of(f"ours, 4 bits: {part}", timing, note=f"{context} tokens of context")
    gc.collect()  # ours is off the device
    model = _theirs(bench, shape.config())
    yield from _compared(bench, model, context, ours, compiled=False)
    yield from _kernels(bench, folder, context)
    try:
        yield from _compared(bench, model, context, ours, compiled=True)
    except Exception as error:  # what torch raises where there is no compiler is of many kinds
        yield Figure("transformers with torch.compile", "failed", note=" ".join(str(error).split())[:300])


def _compared(
    bench: Bench,
    model: Any,  # noqa: ANN401
    context: int,
    ours: dict[str, Timing],
    *,
    compiled: bool,
) -> Iterator[Figure]:
    name = "transformers, bf16" + (" with torch.compile" if compiled else "")
    for part, timing in _timings(bench, model, context, compiled=compiled).items():
        yield Figure.of(f"{name}: {part}", timing)
        yield Figure(f"ours against {name}: {part}", timing.median / ours[part].median, "times as fast")


def _ours(bench: Bench, folder: Path, context: int) -> dict[str, Timing]:
    model = Model(folder, bench.device, Options(capture=bench.on_gpu))
    cache = model.decoder.new_cache(context + 256)
    ids = np.zeros(context, np.int64)
    prompt = Prompt(ids, model.embed_tokens(ids))
    one, wanted = model.embed_tokens(ids[:1])[None], np.zeros((1, 1), np.int64)

    def step() -> None:
        cache.lengths[:] = context
        model.decoder.run(cache, one, wanted)

    def read() -> None:
        cache.lengths[:] = 0
        prefill(model, cache, prompt)

    return {"step": timed(step), "prompt": timed(read, least=3)}


def _theirs(bench: Bench, raw: dict[str, Any]) -> Any:  # noqa: ANN401 - transformers has no types
    """The text model alone, its weights as they are initialised."""
    config = model_config(raw).get_text_config()
    with bench.torch_device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()


@torch.no_grad()
def _timings(bench: Bench, model: Any, context: int, *, compiled: bool) -> dict[str, Timing]:  # noqa: ANN401
    """A prompt, then steps behind it, over a cache of a fixed size, as transformers' documentation has it for compile.

    Steps are a few tokens further along each time: the cache counts them itself.
    """
    cache = StaticCache(config=model.config, max_cache_len=context + STEPS + WARM_UP)
    ids = torch.zeros(1, context, dtype=torch.int64, device=bench.torch_device)
    step_once: Callable[..., Any] = torch.compile(model.forward, mode="reduce-overhead") if compiled else model.forward

    def run(call: Callable[..., Any], tokens: torch.Tensor) -> None:
        call(input_ids=tokens, past_key_values=cache, logits_to_keep=1, use_cache=True)
        bench.synchronize()

    def prompt() -> None:
        cache.reset()
        run(model.forward, ids)  # of a length that comes once, which nobody compiles

    read = timed(prompt, least=3)
    return {"step": timed(partial(run, step_once, ids[:, :1]), most=STEPS), "prompt": read}


def _kernels(bench: Bench, folder: Path, context: int) -> Iterator[Figure]:
    """What ONNX Runtime says of the kernels that attention used, for a prompt and steps, with cuDNN and without."""
    told = {**os.environ, "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"}
    for name, with_torch in (("as runtime runs", ""), ("with torch's cuDNN, as the stages run", "torch")):
        command = [sys.executable, "-c", KERNELS, str(folder), bench.device, str(context), with_torch]
        done = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
        said = Counter(re.findall(r"SdpaKernel=(\S+)", done.stdout + done.stderr))
        value = ", ".join(f"{kernel} {count} times" for kernel, count in said.most_common()) or "none named"
        failed = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        yield Figure(f"attention kernels, {name}", "failed" if failed else value, note=" ".join(failed))
