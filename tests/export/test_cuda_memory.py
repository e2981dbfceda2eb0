"""CUDA graphs on a stand-in device: how much memory they take, and what happens when it is refused."""

import json

import pytest

from calib_data import READER
from quantize.checkpoint.reader import open_checkpoint
from quantize.plan.architecture import read_architecture
from quantize.plan.workspace import kv_workspace

ZEROED = """
import json, sys
from pathlib import Path
from traffic import fill_memory
from runtime.model import Model
from runtime.ort.buffer import Buffer
from runtime.ort.device import Device

model = Model(Path(sys.argv[1]), "cuda")
fill_memory(0xFF)
cache, left = model.decoder.new_cache(200, batch=2), Buffer.empty((8,), "int8", Device("cuda"))
print(json.dumps([left.read().tolist(), [bool(buffer.read().view("uint8").any()) for buffer in cache.buffers]]))
"""


@pytest.mark.parametrize("name", ["w4", "bf16", "kv8"])
def test_a_cache_is_zeroed_before_the_first_call(name, cuda_stub, on_cuda):
    """In memory that holds NaN, as a GPU's may: cuDNN's attention reads rows that nobody has written to."""
    left, nonzero = cuda_stub.run(ZEROED, on_cuda(name))
    assert left == [-1] * 8
    assert nonzero == [False] * 8


MEMORY = """
import json, sys
from pathlib import Path
from traffic import DeviceMemory
from runtime.model import Model

with DeviceMemory() as loaded:
    model = Model(Path(sys.argv[1]), "cuda")
    model.open_sessions()
sizes = {}
for capacity in (30000, 31000):  # the second needs more than the first gave back
    with DeviceMemory() as memory:
        cache = model.decoder.new_cache(capacity)
    del cache
    rope = 2 * capacity * model.manifest.text.head_dim // 2 * 2
    sizes[capacity] = memory.peak, model.decoder.cache_bytes(capacity) + rope
print(json.dumps({"weights": loaded.peak, "sizes": sizes}))
"""


def test_a_gpu_gives_no_more_than_is_needed(cuda_stub, on_cuda):
    """Of the decoder's weights, and of a KV cache with its RoPE tables; by powers of two, a third more was taken."""
    result = cuda_stub.run(MEMORY, on_cuda("w4"))
    first, second = result["sizes"].values()
    assert first[1] <= first[0] < 1.01 * first[1]
    assert second[0] < 1.01 * second[1]
    decoder = [
        tensor.nbytes
        for tensor in open_checkpoint(on_cuda("w4")).tensors.values()
        if tensor.name.startswith(("model.language_model.layers", "model.language_model.norm", "lm_head"))
    ]
    assert result["weights"] < 1.1 * sum(decoder)


KV_WORKSPACE = """
import json, sys
from pathlib import Path
import numpy as np
from traffic import DeviceMemory
from runtime.model import Model

model, peaks = Model(Path(sys.argv[1]), "cuda"), []
cache, embeds = model.decoder.new_cache(100_000), model.embed_tokens(np.arange(100, 228))
for _ in range(2):
    with DeviceMemory() as memory:
        model.decoder.run(cache, embeds[None], np.array([[127]]))
    peaks.append(memory.peak)
print(json.dumps(peaks))
"""


@pytest.mark.parametrize(("name", "itemsize"), [("w4", 2), ("kv8", 1)])
def test_an_int8_cache_is_unpacked_as_planned(name, itemsize, cuda_stub, on_cuda):
    """Once it holds anything, ONNX Runtime's attention copies the cache of a layer, as long as it may become."""
    reader = read_architecture(json.loads((READER / "config.json").read_text()))
    planned = kv_workspace(reader, 100_000, itemsize).bytes
    first, second = cuda_stub.run(KV_WORKSPACE, on_cuda(name))
    assert first < 3 << 20
    assert planned <= second < planned + (3 << 20)


DOCUMENTS = """
import json, sys
from pathlib import Path
from traffic import DeviceMemory
from runtime.decoding.generate import generate
from runtime.prompt import build_prompt
from runtime.model import Model

model, held, capacity = Model(Path(sys.argv[1]), "cuda"), {}, 0
prompt = build_prompt(model, "Hello")
for longest in (50, 60, *range(200, 2000, 300), 100, 1900):
    with DeviceMemory() as memory:
        next(generate(model, prompt, lambda *_: 100, longest))
    held[longest] = memory.kept
text = model.manifest.text
rope = 2 * 1024 * text.head_dim // 2 * 2
print(json.dumps([held, model.decoder.cache_bytes(1024) + rope, model.decoder.cache_bytes(2048) + 2 * rope]))
"""


def test_answers_that_may_be_longer_and_longer_share_a_cache(cuda_stub, on_cuda):
    """The pool keeps what it has given once, so a cache of its own for each would add up."""
    held, small, large = cuda_stub.run(DOCUMENTS, on_cuda("w4"))
    first, _, *others = held.values()  # the second call of a size has its memory laid out in one piece
    assert first > small
    (grown,) = filter(None, others)
    assert grown <= large


REFUSED = """
import json, sys
from pathlib import Path
import numpy as np
from traffic import leave_memory
from console.errors import InputError
from runtime.model import Model
from runtime.inputs.vision import vision_feeds

def said(size, work):
    leave_memory(size)
    try:
        work()
    except InputError as error:
        leave_memory(1 << 40)
        return str(error)

folder = Path(sys.argv[1])
loading = [said(size, Model(folder, "cuda").open_sessions) for size in (1000, 1 << 20)]
model = Model(folder, "cuda")
feeds = vision_feeds(np.zeros((4096, 1176), np.float32), [(1, 64, 64)], model.manifest.vision)
model.vision
cache = model.decoder.new_cache(3000)
prompt = np.zeros((1, 1024, 256), np.float32)
refused = [
    said(1 << 20, lambda: model.decoder.new_cache(30000)),
    said(1 << 20, lambda: model.decoder.run(cache, prompt, np.array([[1023]]))),
    said(1 << 20, lambda: model.vision.run(feeds)),
]
model.decoder.run(cache, prompt, np.array([[1023]]))  # as if nothing had been
print(json.dumps([*loading, *refused]))
"""


def test_what_a_gpu_has_no_memory_for_is_named(cuda_stub, on_cuda):
    folder = on_cuda("w4")
    head, weights, cache, call, picture = cuda_stub.run(REFUSED, folder)
    assert head.startswith(f"out of memory for the head of {folder}")
    assert weights.startswith(f"out of memory for the weights of {folder / 'decoder.cuda.onnx'}")
    assert cache.startswith("out of memory for the KV cache of 30000 tokens, 29 MiB")
    assert call.startswith("out of memory for a call of 1024 tokens over a KV cache of 3000")
    assert picture.startswith("out of memory for pictures of 4096 patches")
    assert "--kv-bits 8" in cache
    assert "smaller images" in picture


WITHOUT_MEMORY = """
import json, sys
from pathlib import Path
from traffic import leave_memory
from runtime.answer import AnswerStream, answer_settings
from runtime.decoding.drafts import open_drafting_sessions
from runtime.prompt import prompt_inputs
from runtime.model import Model

def answered(memory_to_load, memory_to_answer):
    model = Model(Path(sys.argv[1]), "cuda")
    settings = answer_settings(model, model.draft_policy, {"max_new_tokens": 5, "temperature": 0.0})
    model.open_sessions()
    leave_memory(memory_to_load)
    open_drafting_sessions(model, settings.draft_tokens)
    leave_memory(memory_to_answer)
    answer = AnswerStream(model, prompt_inputs(model, "Hello"), settings).finish()
    leave_memory(PLENTY)
    return len(answer.tokens), model.draft_policy.disabled, answer.drafts is not None

PLENTY = 1 << 40
print(json.dumps([answered(*limits) for limits in ((PLENTY, PLENTY), (1 << 16, PLENTY), (PLENTY, 1 << 20))]))
"""


def test_without_memory_for_the_layer_that_drafts_it_answers_without(cuda_stub, on_cuda):
    """Neither loading it nor keeping it next to a KV cache may make an answer fail if nobody asked for drafts."""
    assert cuda_stub.run(WITHOUT_MEMORY, on_cuda("w4")) == [[5, False, True], [5, True, False], [5, True, False]]
