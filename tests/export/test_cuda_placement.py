"""CUDA graphs on a stand-in device: where every node runs, and what moves between host and device in a step."""

import pytest

from quantize.checkpoint.reader import open_checkpoint

RUN = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime as ort
from traffic import Traffic
from runtime.ort.sessions import placement
from runtime.ort import sessions
from runtime.decoding.generate import generate
from runtime.prompt import build_prompt
from runtime.model import Model
from runtime.decoding.sampling import greedy
from runtime.inputs.vision import VisionSession
from runtime.ort.buffer import Buffer
from runtime.ort.device import Device
from runtime.ort.sessions import Options
from runtime.decoding.drafts import Drafts
from runtime.inputs.vision import vision_feeds

folder, prefix, capture = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "capture"
opened = {}

def profiled(path, device, options=None, varying_shapes=False):
    settings = ort.SessionOptions()
    settings.enable_profiling, settings.profile_file_prefix = True, prefix
    provider = sessions.provider(device, options or Options())
    opened[path.stem] = ort.InferenceSession(path, settings, providers=[provider, "CPUExecutionProvider"])
    return opened[path.stem]

sessions.open_session(folder / "decoder.cuda.onnx", Device("cuda"))  # as the command opens it
import runtime.exported
runtime.exported.open_session = profiled
model = Model(folder, "cuda", Options(capture=capture))
embeds = model.embed_tokens(np.arange(100, 200))
cache = model.decoder.new_cache(200)
one = np.array([[0]])
model.decoder.run(cache, embeds[None], np.array([[99]]))
model.decoder.run(cache, embeds[None, :1], one) if not capture else None  # the first step sets its index
with Traffic() as step:
    logits = model.decoder.run(cache, embeds[None, :1], one).logits
result = {"step": step.counts, "logits": logits.shape, "dtype": model.target.dtype}
if not capture:
    with Traffic() as loading:
        model.drafter
    result["drafter_bytes"] = loading.counts["bytes_to_device"]
    prompt = build_prompt(model, "Hello")
    prompt.ids.resize(100, refcheck=False)
    prompt = type(prompt)(prompt.ids, embeds)  # longer than the window
    result["tokens"] = len(list(generate(model, prompt, lambda logits, generated: 100, 5, Drafts(2))))
    feeds = vision_feeds(np.zeros((120, 1176), np.float32), [(1, 12, 10)], model.manifest.vision)
    result["embeds"] = model.vision.run(feeds).shape
print(json.dumps(result | {"placement": {name: placement(session) for name, session in opened.items()}}))
"""


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("w4", "float16"), ("bf16", "bfloat16"), ("nf4", "float16"), ("fp16", "float16"), ("kv8", "float16")],
)
def test_every_node_is_on_the_device_and_only_a_token_moves(name, dtype, cuda_stub, on_cuda, tmp_path):
    result = cuda_stub.run(RUN, on_cuda(name), tmp_path / "profile", "")
    assert result["dtype"] == dtype
    assert result["tokens"] == 5
    assert set(result["placement"]) == {"decoder.cuda", "vision.cuda", "mtp.cuda", "rewind.cuda", "mtp_rewind.cuda"}
    for graph, nodes in result["placement"].items():
        assert {provider for _, provider in nodes} == {"CUDAExecutionProvider"}, graph
        assert not any("Memcpy" in operator for operator, _ in nodes)
        assert ("rewind" in graph) != ("GroupQueryAttention" in dict(nodes))
    assert (result["logits"], result["embeds"]) == ([1, 1, 512], [30, 256])
    stored = open_checkpoint(on_cuda(name)).tensors.values()
    drafting = sum(t.nbytes for t in stored if t.name.startswith("mtp.") and "quant_" not in t.name)
    assert 0.9 * drafting < result["drafter_bytes"] <= drafting  # no second head
    embedded_token, length, logits = 256 * 2, 4, 512 * 4
    levels = 16 * 16 * 2 if name == "nf4" else 0  # MatMulBnb4 sends its 16 levels along, in each of 16 products
    assert result["step"]["bytes_to_device"] == embedded_token + length + levels
    # Attention reads a length per layer back; the KV cache never moves.
    assert result["step"]["bytes_to_host"] <= logits + 4 * length


@pytest.mark.parametrize("name", ["w4", "kv8"])
def test_a_step_is_captured_and_replayed(name, cuda_stub, on_cuda, tmp_path):
    """ONNX Runtime captures graphs of device nodes only, before the prompt; a replay launches no kernel of its own."""
    result = cuda_stub.run(RUN, on_cuda(name), tmp_path / "profile", "capture")
    assert {provider for _, provider in result["placement"]["decoder.cuda"]} == {"CUDAExecutionProvider"}
    assert result["step"]["launches"] == 0
    assert result["step"]["bytes_to_device"] == 256 * 2 + 4
    assert result["step"]["bytes_to_host"] == 512 * 4


ROW = """
import json, sys
from pathlib import Path
import numpy as np
from traffic import Traffic
from runtime.decoding.forward import decode
from runtime.model import Model
from runtime.ort.sessions import Options

model = Model(Path(sys.argv[1]), "cuda", Options(capture=True))
row, embeds, launches = model.decoder.new_cache(200, batch=2).row(1), model.embed_tokens(np.arange(100, 200)), []
decode(model, row, embeds, np.array([99]))
for _ in range(2):
    with Traffic() as step:
        decode(model, row, embeds[:1], np.array([0]))
    launches.append(step.counts["launches"])
print(json.dumps(launches))
"""


def test_a_step_into_a_filled_row_is_not_captured(cuda_stub, on_cuda):
    """The last chunk of a prompt may be one token, and to capture runs it several times; so it is launched anew."""
    first, second = cuda_stub.run(ROW, on_cuda("w4"))
    assert first == second > 0


CAPTURED = """
import json, sys, threading
from pathlib import Path
import numpy as np
from runtime.decoding.forward import decode
from runtime.model import Model
from runtime.ort.sessions import Options

model, said = Model(Path(sys.argv[1]), "cuda", Options(capture=True)), {}
cache, embeds = model.decoder.new_cache(200), model.embed_tokens(np.arange(100, 110))

def elsewhere(name, *call):
    def run():
        try:
            decode(model, cache, *call)
            said[name] = "ran"
        except RuntimeError as error:
            said[name] = str(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

elsewhere("prompt", embeds, np.array([9]))
decode(model, cache, embeds[:1], np.array([0]))
elsewhere("step", embeds[:1], np.array([0]))
said["length"] = int(cache.lengths[0])
said["totals"] = {tokens: int(call.total.read()) for (tokens, _), call in model.decoder.bindings[cache].items()}
print(json.dumps(said))
"""


@pytest.mark.parametrize("name", ["w4", "kv8"])
def test_a_captured_step_is_replayed_by_its_own_thread(name, cuda_stub, on_cuda):
    """Other calls may come from any thread and get the length of the sequence: an int8 prompt depends on it."""
    said = cuda_stub.run(CAPTURED, on_cuda(name))
    assert said["step"] == "a captured step can only be replayed by the thread that captured it"
    assert said["prompt"] == "ran"
    assert said["length"] == 11
    assert said["totals"] == {"10": 10, "1": 200}
