"""Plans against sums by hand, sizes of EXAONE 4.5 33B known beforehand, and folders that quantize wrote."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from calib_data import READER
from console.errors import InputError
from quantize.checkpoint.reader import open_checkpoint
from quantize.pipeline import quantize
from quantize.plan.architecture import read_architecture
from quantize.plan.plan import PRECISIONS, make_plan, parse_bytes, quantizers_for
from quantize.plan.weights import COMPONENTS, repeated_scale_bytes, stored_bytes
from quantize.plan.workspace import kv_workspace, workspace
from quantize.scheme import choose_quantizers
from quantize.settings import Settings
from quantize.solver.quantizers import UniformQuantizer
from runtime.model import Model
from runtime.ort.decoder import DecoderSession
from runtime.ort.device import HOST
from runtime.ort.rope import rope_tables
from runtime.sizes import CHUNKINGS, KvLayers

from ..configs import TEXT

pytestmark = pytest.mark.slow

RELEASED = Path(__file__).parents[2] / "data" / "exaone-4.5-33b.config.json"
GIB = 2**30
DEFAULT = {precision.name: precision for precision in PRECISIONS}


@pytest.fixture(scope="module")
def released():
    return read_architecture(json.loads(RELEASED.read_text()))


@pytest.fixture(scope="module")
def plan():
    return make_plan(RELEASED, 24 * 10**9)


@pytest.fixture(scope="module")
def text_plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("exaone4") / "config.json"
    path.write_text(json.dumps(TEXT))
    return make_plan(path.parent, 8 * 10**9)


@pytest.fixture(scope="session")
def w8_default(tmp_path_factory):
    """The 8-bit defaults; rounding takes as many bytes as solving."""
    settings = Settings(READER, tmp_path_factory.mktemp("planned") / "w8", bits=8, solver="rtn", count=1, reference=0)
    assert quantize(settings)
    return settings.folder


def by_name(plan):
    return {footprint.precision.name: footprint for footprint in plan.footprints}


def folder_bytes(folder):
    """What lies in a folder, by the names that the published formats give."""
    sizes = Counter()
    for name, tensor in open_checkpoint(folder).tensors.items():
        if name.endswith((".weight_shape", ".quant_map", ".quant_state.bitsandbytes__nf4")):
            part = "description"
        elif name.startswith("model.visual."):
            part = "vision"
        elif name.startswith(("mtp.", "lm_head.")):
            part = {"mtp": "mtp", "lm_head": "head"}[name.split(".")[0]]
        elif "embed_tokens" in name:
            part = "embeddings"
        else:
            part = "decoder" if "_proj." in name else "small"
        sizes[part] += tensor.nbytes
    return sizes


@pytest.mark.parametrize("run", ["w4", "w8", "nf4", "nf4_all"])
def test_every_part_has_the_bytes_of_the_folder(run, request):
    run = request.getfixturevalue(run)
    model = read_architecture(json.loads((READER / "config.json").read_text()))
    sizes = folder_bytes(run.folder)
    description = sizes.pop("description")
    assert stored_bytes(model, choose_quantizers(run.settings, model.family, model.config)) == sizes
    assert 0 < description < 0.003 * run.report.bytes


def test_the_plan_of_the_reader_is_the_size_of_its_folders(w4, w8_default, nf4):
    planned = by_name(make_plan(READER, GIB))
    for name, folder in (("4-bit", w4.folder), ("8-bit", w8_default), ("NF4", nf4.folder), ("16-bit", READER)):
        real = folder_bytes(folder)
        assert planned[name].stored == pytest.approx(sum(real.values()), rel=0.01)
        assert planned[name].weights == {part: real[part] for part in COMPONENTS} | {"embeddings": 0}
        assert planned[name].host == real["embeddings"]


def test_the_33b_by_hand(plan):
    """Sums over the released numbers: 64 layers of 5120, 40 and 8 heads of 128, MLP 27392, 153600 tokens."""
    layer = 2 * 5120 * 5120 + 2 * 1024 * 5120 + 3 * 27392 * 5120
    head = 153600 * 5120
    block = 2048 * 3072 + 2048 * 2048 + 3 * 2048 * 5120
    merger = 8192 * 8192 + 8192 * 5120
    biases = 28 * (3072 + 2048 + 2 * 5120 + 2048) + 8192 + 5120
    norms = 28 * 2 * 2048 + 2048
    small = 64 * (2 * 5120 + 2 * 128) + 5120
    mtp, mtp_norms = layer + 5120 * 10240, 2 * (2 * 5120 + 2 * 128 + 3 * 5120)
    rest = 2 * (2048 * 1176 + biases + norms)  # of the vision tower: pixels, which never divide by 128, and vectors
    vision = block * 28 + merger
    bits4, bits8, nf4 = 0.5 + 2 / 128, 1 + 2 / 128, 0.5 + 4 / 64

    def weights(decoder, of_head, of_vision, embeddings=0, of_mtp=None):
        return {
            "decoder": 64 * layer * decoder,
            "head": head * of_head,
            "vision": vision * of_vision + rest,
            "small": 2 * small,
            "mtp": mtp * (of_mtp or decoder) + mtp_norms,
            "embeddings": embeddings,
        }

    planned = {name: footprint.weights for name, footprint in by_name(plan).items()}
    assert planned == {
        "4-bit": weights(bits4, bits8, bits8),
        "8-bit": weights(bits8, bits8, bits8),
        "NF4": weights(nf4, 2, 2),
        "16-bit": weights(2, 2, 2),
        "others": weights(bits4, 2, 2, 2 * head, of_mtp=2),
    }
    assert {name: footprint.host for name, footprint in by_name(plan).items()} == {
        **dict.fromkeys(("4-bit", "8-bit", "NF4", "16-bit"), 2 * head),
        "others": 0,
    }


def test_sizes_known_beforehand(plan, released):
    """GiB as they were worked out before this code, 8 bits with one scale a row."""
    planned = by_name(plan)
    assert planned["16-bit"].weights["decoder"] / GIB == pytest.approx(57.7, abs=0.05)
    assert planned["4-bit"].weights["decoder"] / GIB == pytest.approx(14.87, abs=0.006)
    assert planned["4-bit"].host / GIB == pytest.approx(1.465, abs=5e-4)
    assert planned["16-bit"].weights["head"] / GIB == pytest.approx(1.465, abs=5e-4)
    assert planned["16-bit"].weights["vision"] / GIB == pytest.approx(2.396, abs=5e-4)
    assert planned["16-bit"].weights["mtp"] / GIB == pytest.approx(0.999, abs=5e-4)
    quantizers = quantizers_for(DEFAULT["4-bit"], released)
    rows = {
        path: UniformQuantizer(8, released.shapes[f"{path}.weight"][1])
        for path, quantizer in quantizers.items()
        if quantizer.bits == 8
    }
    sizes = stored_bytes(released, quantizers | rows)
    assert sizes["head"] / GIB == pytest.approx(0.733, abs=5e-4)
    assert sizes["vision"] / GIB == pytest.approx(1.201, abs=1e-3)
    assert sizes["mtp"] / GIB == pytest.approx(0.257, abs=6e-4)


def test_contexts_known_beforehand_without_workspace(plan, released):
    """For 22 GiB without norms and MTP layer. What was worked out for 4 bits, 69K and 151K, is 5 % below these sums."""
    layers = released.kv_layers("window")
    for name, weights, contexts, tolerance in (
        ("others", 20.19, (17e3, 46e3), 0.025),
        ("4-bit", 16.80, (69e3, 151e3), 0.06),
    ):
        size = sum(by_name(plan)[name].weights[part] for part in ("decoder", "head", "vision", "embeddings"))
        assert size / GIB == pytest.approx(weights, abs=0.035)
        for itemsize, published in zip((2, 1), contexts, strict=True):
            fixed, a_token = 48 * 4096 * 2048 * itemsize, 16 * 2048 * itemsize
            tokens = (22 * GIB - size - fixed) // a_token
            assert tokens == pytest.approx(published, rel=tolerance)
            assert layers.bytes(tokens, itemsize) + size <= 22 * GIB < size + layers.bytes(tokens + 1, itemsize)


def test_kv_cache_of_hybrid_layers(plan):
    assert {tokens: sizes["fp16"] for tokens, sizes in plan.kv.items()} == {
        tokens: 768 * 2**20 + 64 * 1024 * tokens for tokens in (4096, 8192, 16384, 32768, 65536, 131072, 262144)
    }
    assert all(2 * sizes["int8"] == sizes["fp16"] for sizes in plan.kv.values())


def test_workspace_line_by_line(plan):
    lines = {line.name: line.bytes for line in by_name(plan)["4-bit"].workspace}
    assert lines == {
        "prompt chunk, 4096 tokens": 4096 * (2 * 5120 + 4 * 27392) * 2,
        "decoder weight, unpacked": 2 * 27392 * 5120 * 2,
        "logits": 153600 * 6,
        "RoPE tables": 32768 * 64 * 2 * 2,
        "MTP KV cache": 16 * 2**20,
        "image of 16384 patches": 16384 * ((2 * 2048 + 4 * 5120) * 2 + (1176 + 128) * 4),
        "vision weight, unpacked": 8192 * 8192 * 2,
    }
    plain = {line.name: line.bytes for line in by_name(plan)["16-bit"].workspace}
    assert plain == lines | {"decoder weight, unpacked": 0, "vision weight, unpacked": 0}
    assert {line.name for line in by_name(plan)["NF4"].workspace if not line.bytes} == {"vision weight, unpacked"}
    full = by_name(make_plan(RELEASED, GIB, 262144))["4-bit"].workspace
    assert {line.name: line.bytes for line in full}["RoPE tables"] == 64 * 2**20


def test_of_an_int8_cache_one_layer_is_unpacked_at_a_time(plan):
    """The largest, which is a global one: 8 heads of 128, keys and values."""
    assert {kind: line.bytes for kind, line in plan.kv_workspace.items()} == {
        "fp16": 0,
        "int8": 2 * 8 * 32768 * 128 * 2,
    }
    full = make_plan(RELEASED, GIB, 262144).kv_workspace["int8"]
    assert (full.bytes, full.tensors) == (GIB, "2 x [8, 262144, 128] in 16 bits")


def test_of_sliding_layers_a_window_is_unpacked():
    raw = json.loads(RELEASED.read_text())
    raw["text_config"]["layer_types"] = ["sliding_attention"] * 64
    assert kv_workspace(read_architecture(raw), 262144, 1).bytes == 16 * 2**20


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_the_longest_context_fits_and_one_more_token_does_not(plan, kind):
    longest = by_name(plan)["4-bit"].longest[kind]
    assert 0 < longest < 262144
    assert by_name(make_plan(RELEASED, plan.vram, longest))["4-bit"].total[kind] <= plan.vram
    assert by_name(make_plan(RELEASED, plan.vram, longest + 1))["4-bit"].total[kind] > plan.vram


def test_the_runtime_allocates_what_is_planned(exported):
    """A KV cache and RoPE tables of the reader on the CPU, in float32: twice the bytes of 16 bits."""
    model, planned = Model(exported("fp16"), "cpu"), make_plan(READER, GIB, 2048)
    for session, layers in (
        (model.decoder, planned.kv[2048]["fp16"]),
        (model.drafter.session, allocated(planned, "MTP KV cache")),
    ):
        cache = session.new_cache(2048)
        assert sum(buffer.read().nbytes for buffer in cache.buffers) == 2 * layers
        tables = cache.rope_cos.read().nbytes + cache.rope_sin.read().nbytes
        assert tables == 2 * allocated(planned, "RoPE tables")
    full = model.manifest.targets["cpu"]
    session = DecoderSession(model.decoder._session, model.manifest.text, replace(full, kv_layout="full"), HOST, {})
    assert session.cache_bytes(2048) == 2 * planned.kv_full[2048]["fp16"]


def allocated(plan, name):
    return next(line.bytes for line in by_name(plan)["4-bit"].workspace if line.name == name)


def test_rope_tables_of_the_33b_are_as_planned(plan, released):
    rope = {"head_dim": 128, "rope_parameters": dict(released.text.rope_parameters)}
    assert allocated(plan, "RoPE tables") == sum(table.size for table in rope_tables(rope, plan.context)) * 2


def test_prompt_chunks_are_those_of_a_gpu(plan):
    assert allocated(plan, f"prompt chunk, {CHUNKINGS['cuda'].longest} tokens")


def test_the_longest_context_ends_at_nothing_and_at_the_models_limit(plan):
    assert by_name(plan)["16-bit"].longest == {"fp16": 0, "int8": 0}
    assert by_name(make_plan(RELEASED, 80 * GIB))["4-bit"].longest == {"fp16": 262144, "int8": 262144}


def test_without_drafts_the_mtp_layer_and_its_cache_leave_memory_for_tokens(plan):
    footprint = by_name(plan)["4-bit"]
    freed = footprint.weights["mtp"] + 16 * 2**20
    a_token = 64 * 1024 + 256
    gained = footprint.longest_without_mtp["fp16"] - footprint.longest["fp16"]
    assert gained == pytest.approx(freed / a_token, abs=1)


def test_a_total_is_the_sum_of_what_is_shown(plan):
    for footprint in plan.footprints:
        shown = sum(footprint.weights.values()) + sum(line.bytes for line in footprint.workspace)
        assert footprint.total == {
            "fp16": shown + plan.kv[32768]["fp16"],
            "int8": shown + plan.kv[32768]["int8"] + plan.kv_workspace["int8"].bytes,
        }


def test_blocks_of_32_repeat_scales_and_unpack_nothing(plan, released):
    """Four times the scales of all packed weights but the head's, less the widest weight of either tower."""
    layer = 2 * 5120 * 5120 + 2 * 1024 * 5120 + 3 * 27392 * 5120
    vision = 28 * (2048 * 3072 + 2048 * 2048 + 3 * 2048 * 5120) + 8192 * 8192 + 8192 * 5120
    scales = 3 * (65 * layer + 5120 * 10240 + vision) * 2 // 128
    for name in ("4-bit", "8-bit"):
        in_blocks = by_name(plan)[name].in_blocks
        added = scales - 2 * 27392 * 5120 * 2 - 8192 * 8192 * 2
        assert in_blocks.added == {"fp16": added, "int8": added}
    fp16 = by_name(plan)["4-bit"]
    assert fp16.longest["fp16"] - fp16.in_blocks.longest["fp16"] == pytest.approx(added / (64 * 1024 + 256), abs=1)
    assert [by_name(plan)[name].in_blocks for name in ("NF4", "16-bit")] == [None, None]
    quantizers = {
        "lm_head": UniformQuantizer(8, 128),
        "model.language_model.layers.0.self_attn.q_proj": UniformQuantizer(4, 16),
    }
    assert repeated_scale_bytes(released, quantizers) == 0


def test_full_buffers_take_256_kib_a_token(plan, released):
    """All 64 layers instead of 16, and the MTP layer."""
    assert {tokens: sizes["fp16"] for tokens, sizes in plan.kv_full.items()} == {
        tokens: 256 * 1024 * tokens for tokens in plan.kv
    }
    assert plan.kv_full[32768]["int8"] == KvLayers([None] * 64, 8, 128).bytes(32768, 1)
    full = by_name(plan)["4-bit"].full_buffers
    assert full.added["fp16"] == 48 * 4096 * (32768 - 4096) + 4096 * (32768 - 4096)
    fixed = by_name(plan)["4-bit"].total["fp16"] + full.added["fp16"] - 32768 * (260 * 1024 + 256)
    assert full.longest["fp16"] == (plan.vram - fixed) // (260 * 1024 + 256)


def test_a_text_model_with_tied_embeddings(text_plan):
    """The head is the embedding: one table in the folder, and a copy of it on the GPU while the host keeps its own."""
    layer, table = 2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 4096 * 2048, 102400 * 2048
    small = 6 * (2 * 2048 + 2 * 64) + 2048
    planned = by_name(text_plan)
    empty = {"vision": 0, "mtp": 0, "embeddings": 0, "small": 2 * small}
    plain, packed = planned["16-bit"], planned["4-bit"]
    assert plain.weights == {"decoder": 12 * layer, "head": 2 * table, **empty}
    assert plain.stored == 12 * layer + 2 * table + 2 * small
    assert packed.weights == {"decoder": 6 * layer * 4.125 / 8, "head": table * (1 + 1 / 64), **empty}
    assert packed.stored == sum(packed.weights.values()) + 2 * table
    assert plain.host == packed.host == 2 * table
    assert planned["others"].host == 0
    assert planned["others"].weights["head"] + planned["others"].weights["embeddings"] == 2 * table
    assert text_plan.kv[4096]["fp16"] == 4096 * 6 * 2 * 512 * 2
    assert not text_plan.has_mtp
    assert [line.name for line in packed.workspace] == [
        "prompt chunk, 4096 tokens",
        "decoder weight, unpacked",
        "logits",
        "RoPE tables",
    ]
    assert packed.longest == packed.longest_without_mtp
    assert packed.full_buffers is None


def test_mtp_layers_may_be_absent_or_several(released):
    raw = json.loads(RELEASED.read_text())
    one = stored_bytes(released, {})["mtp"]
    layer = 2 * (2 * 5120 * 5120 + 2 * 1024 * 5120 + 3 * 27392 * 5120 + 2 * 5120 + 2 * 128)
    for layers, expected in ((2, one + layer), (0, 0), (None, 0)):
        raw["text_config"]["num_nextn_predict_layers"] = layers
        assert stored_bytes(read_architecture(raw), {})["mtp"] == expected
    del raw["text_config"]["num_nextn_predict_layers"]
    assert stored_bytes(read_architecture(raw), {})["mtp"] == 0
    raw["text_config"]["num_nextn_predict_layers"] = "one"
    with pytest.raises(InputError, match="num_nextn_predict_layers"):
        read_architecture(raw)


def test_the_mtp_layer_has_the_tensors_of_the_checkpoint():
    model = read_architecture(json.loads((READER / "config.json").read_text()))
    stored = {name: tensor.shape for name, tensor in open_checkpoint(READER).tensors.items()}
    assert model.shapes == stored


def test_the_workspace_grows_linearly_with_the_context(released):
    quantizers = quantizers_for(DEFAULT["4-bit"], released)

    def size(context):
        return sum(line.bytes for line in workspace(released, quantizers, context, with_mtp=True))

    assert size(262144) - size(0) == 262144 * (size(1) - size(0)) == 64 * 2**20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("22GiB", 22 * GIB),
        ("8000MB", 8 * 10**9),
        ("512 MiB", 2**29),
        ("1.5gib", 3 * 2**29),
    ],
)
def test_sizes_on_the_command_line(text, size):
    assert parse_bytes(text, "--vram") == size


@pytest.mark.parametrize("text", ["24", "24G", "24 GBit", "24KB", "GB", "-24GB", "0GB", "1e3GB", "", "9" * 400 + "GB"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match=r"--vram .* is no size; write a number and MB, GB, MiB, GiB, such as 24GB"):
        parse_bytes(text, "--vram")


def test_a_plan_reads_no_weights_and_writes_nothing(tmp_path):
    shutil.copy(READER / "config.json", tmp_path / "config.json")
    folder, file = make_plan(tmp_path, GIB), make_plan(tmp_path / "config.json", GIB)
    assert folder.footprints == file.footprints == make_plan(READER, GIB).footprints
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
