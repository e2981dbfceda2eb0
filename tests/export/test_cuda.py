"""The CUDA graphs on a stand-in device: where every node runs, and what crosses between host and device in a step."""

import json
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from calib_data import READER
from console.errors import InputError
from export import export
from quantize.checkpoint.reader import open_checkpoint
from quantize.plan.memory import kv_workspace
from quantize.plan.sizes import read_architecture
from runtime.generate import Model

from ..cuda_stub.build import CudaStub

RUN = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime as ort
from traffic import Traffic
from runtime.ort.sessions import placement
from runtime import sessions
from runtime.generate import Model
from runtime.sampling import greedy
from runtime.ort.sessions import Buffer, Device, Options, VisionSession
from runtime.speculative import Drafts, Rewinder
from runtime.inputs.vision_inputs import vision_feeds

folder, prefix, capture = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "capture"
opened = {}

def profiled(path, device, options=None, give_back=False):
    settings = ort.SessionOptions()
    settings.enable_profiling, settings.profile_file_prefix = True, prefix
    told = sessions.provider(device, options or Options())
    opened[path.stem] = ort.InferenceSession(path, settings, providers=[told, "CPUExecutionProvider"])
    return opened[path.stem]

sessions.open_session(folder / "decoder.cuda.onnx", Device("cuda"))  # as the command opens it
import runtime.generate
runtime.generate.open_session = profiled
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
    prompt = model.prompt("Hello")
    prompt.ids.resize(100, refcheck=False)
    prompt = type(prompt)(prompt.ids, embeds)  # longer than the window
    result["tokens"] = len(list(model.generate(prompt, lambda logits, generated: 100, 5, Drafts(2))))
    feeds = vision_feeds(np.zeros((120, 1176), np.float32), [(1, 12, 10)], model.manifest.vision)
    result["embeds"] = model.vision.run(feeds).shape
print(json.dumps(result | {"placement": {name: placement(session) for name, session in opened.items()}}))
"""


@pytest.fixture(scope="module")
def on_cuda(quantized: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Readers with CUDA graphs only, by the names of `quantized`; kv8 (of w4) and bf16-kv8 have an int8 KV cache."""

    @cache
    def folder(name: str) -> Path:
        to = tmp_path_factory.mktemp("cuda") / name
        stored = quantized("w4" if name == "kv8" else name.removesuffix("-kv8"))
        shutil.copytree(stored, to, ignore=shutil.ignore_patterns("*.onnx", "runtime.json"))
        export(to, "cuda", kv_bits=8 if name.endswith("kv8") else 16)
        return to

    return folder


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
from runtime.generate import Model
from runtime.ort.sessions import Options

model = Model(Path(sys.argv[1]), "cuda", Options(capture=True))
row, embeds, launches = model.decoder.new_cache(200, batch=2).row(1), model.embed_tokens(np.arange(100, 200)), []
model.decode(row, embeds, np.array([99]))
for _ in range(2):
    with Traffic() as step:
        model.decode(row, embeds[:1], np.array([0]))
    launches.append(step.counts["launches"])
print(json.dumps(launches))
"""


def test_a_step_into_a_filled_row_is_not_captured(cuda_stub, on_cuda):
    """The last chunk of a prompt may be one token, and to capture runs it several times; so it is launched anew."""
    first, second = cuda_stub.run(ROW, on_cuda("w4"))
    assert first == second > 0


ZEROED = """
import json, sys
from pathlib import Path
from traffic import fill_memory
from runtime.generate import Model
from runtime.ort.sessions import Buffer, Device

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


CAPTURED = """
import json, sys, threading
from pathlib import Path
import numpy as np
from runtime.generate import Model
from runtime.ort.sessions import Options

model, said = Model(Path(sys.argv[1]), "cuda", Options(capture=True)), {}
cache, embeds = model.decoder.new_cache(200), model.embed_tokens(np.arange(100, 110))

def elsewhere(name, *call):
    def run():
        try:
            model.decode(cache, *call)
            said[name] = "ran"
        except RuntimeError as error:
            said[name] = str(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

elsewhere("prompt", embeds, np.array([9]))
model.decode(cache, embeds[:1], np.array([0]))
elsewhere("step", embeds[:1], np.array([0]))
said["length"] = int(cache.lengths[0])
said["totals"] = {tokens: int(call.total.read()) for (_, tokens, _), call in cache.calls.items()}
print(json.dumps(said))
"""


@pytest.mark.parametrize("name", ["w4", "kv8"])
def test_a_captured_step_is_replayed_by_its_own_thread(name, cuda_stub, on_cuda):
    """Other calls may come from any thread, and are told how long the sequence is: an int8 prompt depends on it."""
    said = cuda_stub.run(CAPTURED, on_cuda(name))
    assert said["step"] == "a captured step can only be replayed by the thread that captured it"
    assert said["prompt"] == "ran"
    assert said["length"] == 11
    assert said["totals"] == {"10": 10, "1": 200}


MEMORY = """
import json, sys
from pathlib import Path
from traffic import DeviceMemory
from runtime.ort.cache import cache_bytes
from runtime.generate import Model

with DeviceMemory() as loaded:
    model = Model(Path(sys.argv[1]), "cuda")
    model.load()
sizes = {}
for capacity in (30000, 31000):  # the second needs more than the first gave back
    with DeviceMemory() as memory:
        cache = model.decoder.new_cache(capacity)
    del cache
    rope = 2 * capacity * model.manifest.text.head_dim // 2 * 2
    sizes[capacity] = memory.peak, cache_bytes(model.manifest.text, 1, capacity, 2) + rope
print(json.dumps({"weights": loaded.peak, "sizes": sizes}))
"""


def test_a_card_gives_no_more_than_is_needed(cuda_stub, on_cuda):
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
from runtime.generate import Model

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
from runtime.ort.cache import cache_bytes
from runtime.generate import Model

model, held, capacity = Model(Path(sys.argv[1]), "cuda"), {}, 0
prompt = model.prompt("Hello")
for longest in (50, 60, *range(200, 2000, 300), 100, 1900):
    with DeviceMemory() as memory:
        next(model.generate(prompt, lambda *_: 100, longest))
    held[longest] = memory.kept
text = model.manifest.text
rope = 2 * 1024 * text.head_dim // 2 * 2
print(json.dumps([held, cache_bytes(text, 1, 1024, 2) + rope, cache_bytes(text, 1, 2048, 2) + 2 * rope]))
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
from runtime.generate import Model
from runtime.inputs.vision_inputs import vision_feeds

def said(size, work):
    leave_memory(size)
    try:
        work()
    except InputError as error:
        leave_memory(1 << 40)
        return str(error)

folder = Path(sys.argv[1])
loading = [said(size, Model(folder, "cuda").load) for size in (1000, 1 << 20)]
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


def test_what_a_card_has_no_memory_for_is_named(cuda_stub, on_cuda):
    folder = on_cuda("w4")
    head, weights, cache, call, picture = cuda_stub.run(REFUSED, folder)
    assert head.startswith(f"out of memory for the head of {folder}")
    assert weights.startswith(f"out of memory for the weights of {folder / 'decoder.cuda.onnx'}")
    assert cache.startswith("out of memory for the KV cache of 30000 tokens, 29 MiB")
    assert call.startswith("out of memory for a call of 1024 tokens beside a KV cache of 3000")
    assert picture.startswith("out of memory for pictures of 4096 patches")
    assert "--kv-bits 8" in cache
    assert "smaller images" in picture


ANSWER = """
import json, sys
from pathlib import Path
from runtime.generate import Model
model = Model(Path(sys.argv[1]), "cuda")
print(json.dumps([model.target.dtype, len(list(model.generate(model.prompt("Hello"), lambda *_: 100, 3)))]))
"""


def test_bfloat16_with_an_int8_cache_answers(cuda_stub, on_cuda):
    """Its hidden states are looked at on the host, where numpy has no bfloat16."""
    assert cuda_stub.run(ANSWER, on_cuda("bf16-kv8")) == ["bfloat16", 3]


LOAD = """
import json, sys
from pathlib import Path
from console.errors import InputError
from runtime.generate import Model
try:
    Model(Path(sys.argv[1]), sys.argv[2])
except InputError as error:
    print(json.dumps(str(error)))
"""


WITHOUT_WHEELS = """
import onnxruntime
onnxruntime.preload_dlls = lambda: None  # NVIDIA's wheels may be there, and would be looked into
"""


def test_a_library_that_does_not_load_is_named(cuda_stub, on_cuda, tmp_path):
    """With a driver, and all of CUDA but one library. It is empty: one that is not there may be elsewhere."""
    folder = tmp_path / "libraries"
    shutil.copytree(cuda_stub.folder, folder)
    (folder / "libcurand.so.10").write_bytes(b"")
    said = CudaStub(folder).run(WITHOUT_WHEELS + LOAD, on_cuda("w4"), "cuda")
    assert "libcurand.so.10: file too short" in said
    assert "\n" not in said


@pytest.mark.parametrize("number", [1, 99999999999])
def test_a_card_that_is_not_there_is_one_line(number, cuda_stub, on_cuda):
    said = cuda_stub.run(LOAD, on_cuda("w4"), f"cuda:{number}")
    assert said == f"--device cuda:{number}: there is no such card; the last is cuda:0"


def test_a_driver_that_finds_no_card_is_one_line(cuda_stub, on_cuda, tmp_path):
    folder = tmp_path / "libraries"
    shutil.copytree(cuda_stub.folder, folder)
    (folder / "none.c").write_text("int cuInit(unsigned flags) { return 100; }\n")
    subprocess.run(["gcc", "-shared", "-o", folder / "libcuda.so.1", folder / "none.c"], check=True)
    said = CudaStub(folder).run(LOAD, on_cuda("w4"), "cuda")
    assert said.startswith("CUDA was asked for but the NVIDIA driver gives no card (its error 100); ")
    assert "\n" not in said


UNSTARTED = """
import contextlib, io, json, sys
from pathlib import Path
from console.errors import InputError
from runtime.ort.sessions import Device, Options, open_session

with contextlib.redirect_stdout(io.StringIO()) as printed:
    try:
        open_session(Path(sys.argv[1]) / "decoder.cuda.onnx", Device("cuda"), Options(memory_limit=-1))
    except InputError as error:
        said = str(error)
print(json.dumps([said, printed.getvalue()]))
"""


def test_a_provider_that_does_not_start_says_why_in_one_line(cuda_stub, on_cuda):
    """ONNX Runtime would print so, and load the graph on the CPU; --memory-limit is checked before it is told."""
    said, printed = cuda_stub.run(UNSTARTED, on_cuda("w4"))
    assert said.startswith("cuda was asked for but ONNX Runtime could not start it (")
    assert 'Failed to parse provider option "gpu_mem_limit"' in said
    assert "\n" not in said
    assert printed == ""


COMMAND = """
import json, subprocess, sys
done = subprocess.run([sys.executable, "-m", "runtime", *sys.argv[1:]], capture_output=True, text=True)
print(json.dumps([done.returncode, done.stdout, done.stderr]))
"""


@pytest.mark.parametrize(
    ("options", "drafts"), [(("--draft-tokens", "2"), True), ((), True), (("--cuda-graph",), False)]
)
def test_a_command_prints_its_answer_and_nothing_else(options, drafts, cuda_stub, on_cuda, tmp_path):
    """With every graph open: decoder, vision, and by default MTP layer and what takes drafts back."""
    Image.new("RGB", (56, 56)).save(tmp_path / "page.png")
    asked = "--image", tmp_path / "page.png", *options, "--max-new-tokens", "5"
    code, out, err = cuda_stub.run(COMMAND, "generate", "--model", on_cuda("w4"), "--device", "cuda", *asked, "--json")
    assert code == 0
    assert err.startswith("cuDNN 9 is not installed: prompts use ONNX Runtime's own kernels")  # the stand-in has none
    assert err.count("\n") == 1
    assert json.loads(out)["model"] == str(on_cuda("w4"))
    assert ("decoder_calls" in json.loads(out)) == drafts


WITHOUT_ROOM = """
import json, sys
from pathlib import Path
from traffic import leave_memory
from runtime.answer import Answers
from runtime.draft_policy import DraftPolicy
from runtime.generate import Model
from runtime.sampling import Sampling

def answered(room_to_load, room_to_answer):
    model, policy = Model(Path(sys.argv[1]), "cuda"), DraftPolicy()
    answers = Answers(model, Sampling(), 5, False, policy)
    model.load()
    leave_memory(room_to_load)
    answers.load()
    leave_memory(room_to_answer)
    said = answers.to_json(model.question("Hello"), 0)
    leave_memory(PLENTY)
    return len(said["tokens"]), policy.given_up, "decoder_calls" in said

PLENTY = 1 << 40
print(json.dumps([answered(*rooms) for rooms in ((PLENTY, PLENTY), (1 << 16, PLENTY), (PLENTY, 1 << 20))]))
"""


def test_without_memory_for_the_layer_that_drafts_it_answers_without(cuda_stub, on_cuda):
    """Neither loading it nor keeping it beside a KV cache may make an answer fail that nobody asked drafts for."""
    assert cuda_stub.run(WITHOUT_ROOM, on_cuda("w4")) == [[5, False, True], [5, True, False], [5, True, False]]


def test_cuda_without_a_driver_is_one_line(on_cuda):
    folder = on_cuda("w4")
    with pytest.raises(InputError, match="use --device cpu"):
        Model(folder, "cuda")
    with pytest.raises(InputError, match="--device cpu"):
        Model(folder, "cpu")
