"""Speed against transformers in bfloat16: a prompt and a step with four layers of the released widths."""

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

from bench.gpu.figures import Figure
from bench.gpu.folders import FOUR_LAYERS, TINY, folder_of
from bench.timing import WARM_UP, Quartiles, timed
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
STEPS = 100  # most steps that are timed
KERNELS = """
import sys
if sys.argv[4]:
    import torch  # loads its cuDNN for ONNX Runtime
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
    """Ours in 4 bits against transformers in bfloat16, without and with torch.compile; and our attention kernels."""
    shape = TINY if bench.tiny else FOUR_LAYERS
    context, folder = CONTEXT_TINY if bench.tiny else CONTEXT, folder_of(bench, shape)
    ours = _ours(bench, folder, context)
    for part, timing in ours.items():
        yield Figure.of(f"ours, 4 bits: {part}", timing, note=f"{context} tokens of context")
    gc.collect()  # frees our memory of the GPU
    model = _theirs(bench, shape.config())
    yield from _compared(bench, model, context, ours, compiled=False)
    yield from _kernels(bench, folder, context)
    try:
        yield from _compared(bench, model, context, ours, compiled=True)
    except Exception as error:  # torch raises errors of many types if there is no compiler
        yield Figure("transformers with torch.compile", "failed", note=" ".join(str(error).split())[:300])


def _compared(
    bench: Bench,
    model: Any,  # noqa: ANN401
    context: int,
    ours: dict[str, Quartiles],
    *,
    compiled: bool,
) -> Iterator[Figure]:
    name = "transformers, bf16" + (" with torch.compile" if compiled else "")
    for part, timing in _timings(bench, model, context, compiled=compiled).items():
        yield Figure.of(f"{name}: {part}", timing)
        yield Figure(f"ours against {name}: {part}", timing.median / ours[part].median, "times as fast")


def _ours(bench: Bench, folder: Path, context: int) -> dict[str, Quartiles]:
    model = Model(folder, bench.device, Options(capture=bench.on_gpu))
    cache = model.decoder.new_cache(context + 256)
    ids = np.zeros(context, np.int64)
    prompt = Prompt(ids, model.embed_tokens(ids))
    token, last = model.embed_tokens(ids[:1])[None], np.zeros((1, 1), np.int64)

    def step() -> None:
        cache.lengths[:] = context
        model.decoder.run(cache, token, last)

    def read() -> None:
        cache.lengths[:] = 0
        prefill(model, cache, prompt)

    return {"step": timed(step), "prompt": timed(read, least=3)}


def _theirs(bench: Bench, raw: dict[str, Any]) -> Any:  # noqa: ANN401 - transformers has no types
    """The text model alone, with its initial weights."""
    config = model_config(raw).get_text_config()
    with bench.torch_device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()


@torch.no_grad()
def _timings(bench: Bench, model: Any, context: int, *, compiled: bool) -> dict[str, Quartiles]:  # noqa: ANN401
    """Time a prompt and the steps after it, with a static cache, which transformers recommends for torch.compile.

    The context grows by a token with each step, as the cache counts them itself.
    """
    cache = StaticCache(config=model.config, max_cache_len=context + STEPS + WARM_UP)
    ids = torch.zeros(1, context, dtype=torch.int64, device=bench.torch_device)
    step_once: Callable[..., Any] = torch.compile(model.forward, mode="reduce-overhead") if compiled else model.forward

    def run(call: Callable[..., Any], tokens: torch.Tensor) -> None:
        call(input_ids=tokens, past_key_values=cache, logits_to_keep=1, use_cache=True)
        bench.synchronize()

    def prompt() -> None:
        cache.reset()
        run(model.forward, ids)  # not compiled, as its length occurs once

    read = timed(prompt, least=3)
    return {"step": timed(partial(run, step_once, ids[:, :1]), most=STEPS), "prompt": read}


def _kernels(bench: Bench, folder: Path, context: int) -> Iterator[Figure]:
    """The attention kernels of ONNX Runtime for a prompt and steps, without and with cuDNN, from its own log."""
    environment = {**os.environ, "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"}
    for name, with_torch in (("as in runtime", ""), ("with torch's cuDNN, as in these stages", "torch")):
        command = [sys.executable, "-c", KERNELS, str(folder), bench.device, str(context), with_torch]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        kernels = Counter(re.findall(r"SdpaKernel=(\S+)", done.stdout + done.stderr))
        value = ", ".join(f"{kernel} {count} times" for kernel, count in kernels.most_common()) or "none logged"
        failed = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        yield Figure(f"attention kernels, {name}", "failed" if failed else value, note=" ".join(failed))
