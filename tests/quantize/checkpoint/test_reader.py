"""Reading and writing safetensors folders, with the stock safetensors package as the other side."""

import json
import random
import struct
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from console.errors import InputError
from quantize.checkpoint.reader import DTYPES, PAGE, open_checkpoint
from quantize.checkpoint.writer import CheckpointWriter


def some_tensors(blocks=4):
    generator = torch.Generator().manual_seed(0)
    for i in range(blocks):
        yield [
            (f"{i}.z", torch.randn(7, 5, generator=generator).half()),
            (f"{i}.a", torch.randint(-9, 9, (3,), generator=generator, dtype=torch.int32)),
            (f"{i}.empty", torch.empty(0, 4)),
            (f"{i}.scalar", torch.tensor(3.0, dtype=torch.bfloat16)),
            (f"{i}.transposed", torch.randn(40, 5, generator=generator).T),
        ]


def written(folder, **options):
    with CheckpointWriter(folder, **options) as writer:
        for i, block in enumerate(some_tensors()):
            writer.write(block, metadata=[(f"{i}.shape", torch.tensor([7, 5]))])
        writer.finish()
    (folder / "config.json").write_text('{"model_type": "any"}')
    return writer


@pytest.mark.parametrize("shard_bytes", [1 << 30, 1000])
def test_the_stock_reader_reads_what_is_written(tmp_path, shard_bytes):
    writer = written(tmp_path, shard_bytes=shard_bytes)
    expected = {name: tensor for block in some_tensors() for name, tensor in block}
    expected |= {f"{i}.shape": torch.tensor([7, 5]) for i in range(4)}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    found = {}
    for path in sorted(tmp_path.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
                found[name] = file.get_tensor(name)
                assert index["weight_map"][name] == path.name
    assert found.keys() == expected.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert index["metadata"]["total_size"] == writer.total_bytes == sum(t.nbytes for t in expected.values())
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if shard_bytes > 1000 else 4)


def test_tensors_lie_in_the_order_written_and_start_on_a_page(tmp_path):
    written(tmp_path, shard_bytes=1500)
    checkpoint = open_checkpoint(tmp_path)
    order = [name for block in some_tensors() for name, _ in block]
    assert [name for name in checkpoint.tensors if not name.endswith("shape")] == order
    for path in checkpoint.files:
        inside = [tensor for tensor in checkpoint.tensors.values() if tensor.file == path]
        assert inside[0].offset % PAGE == 0
        assert all(a.offset + a.nbytes == b.offset for a, b in pairwise(inside))
        assert inside[-1].offset + inside[-1].nbytes == path.stat().st_size
        # small tensors last, where their odd sizes move nothing
        assert [t.name.endswith("shape") for t in inside] == sorted(t.name.endswith("shape") for t in inside)


def test_a_full_header_starts_a_new_file_and_never_overflows(tmp_path):
    with CheckpointWriter(tmp_path, header_bytes=PAGE) as writer:
        for i in range(100):
            writer.write([(f"tensor.number.{i}", torch.full((2,), float(i)))])
        writer.finish()
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert 1 < len(checkpoint.files) < 10
    assert all(float(checkpoint.load(f"tensor.number.{i}")[1]) == i for i in range(100))
    with pytest.raises(ValueError, match="does not fit"), CheckpointWriter(tmp_path, header_bytes=64) as writer:
        writer.write([("a", torch.ones(2))])


@pytest.mark.parametrize("shard_bytes", [1 << 30, 1000])
@pytest.mark.parametrize("finished", [False, True])
def test_a_writer_that_was_killed_goes_on_and_makes_the_same_bytes(tmp_path, shard_bytes, finished):
    """Killed with a block half written, at any block, or after the files had got their names."""
    whole = tmp_path / "whole"
    whole.mkdir()
    written(whole, shard_bytes=shard_bytes)
    blocks = list(some_tensors())
    for stop in range(1, 5):
        folder = tmp_path / f"{stop}"
        folder.mkdir()
        with CheckpointWriter(folder, shard_bytes) as writer:
            for i in range(stop):
                writer.write(blocks[i], metadata=[(f"{i}.shape", torch.tensor([7, 5]))])
            state = json.loads(json.dumps(writer.state()))
            if stop < 4:  # what was written later than the state
                writer.write(blocks[stop][:3], metadata=[(f"{stop}.shape", torch.tensor([0, 0]))])
            elif finished:
                writer.finish()
        with CheckpointWriter(folder, shard_bytes) as writer:
            writer.resume(state)
            for i in range(stop, 4):
                writer.write(blocks[i], metadata=[(f"{i}.shape", torch.tensor([7, 5]))])
            writer.finish()
        (folder / "config.json").write_text('{"model_type": "any"}')
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in whole.iterdir()
        }


@pytest.mark.parametrize(("shard", "keep"), [(1, 0), (1, -1), (2, 0), (2, -1), (1, None), (2, None)])
def test_a_writer_does_not_go_on_from_files_that_were_cut(tmp_path, shard, keep):
    """A full file and the one that was being written; None: it is gone."""
    with CheckpointWriter(tmp_path, shard_bytes=1000) as writer:
        for i, block in enumerate(list(some_tensors())[:2]):
            writer.write(block, metadata=[(f"{i}.shape", torch.tensor([7, 5]))])
        state = json.loads(json.dumps(writer.state()))
    path = tmp_path / f"model-{shard:05d}.writing"
    path.unlink() if keep is None else path.write_bytes(path.read_bytes()[:keep])
    with (
        pytest.raises(InputError, match=f"{path} is missing or truncated; remove {tmp_path} and begin again"),
        CheckpointWriter(tmp_path, shard_bytes=1000) as writer,
    ):
        writer.resume(state)


@pytest.mark.parametrize("names", ["a", "bb"])
def test_a_name_is_written_once(tmp_path, names):
    with pytest.raises(ValueError, match="twice"), CheckpointWriter(tmp_path, shard_bytes=1) as writer:
        writer.write([("a", torch.ones(2))])
        writer.write([(name, torch.ones(2)) for name in names])
    assert not list(tmp_path.glob("*.safetensors"))


def test_reading_what_the_stock_writer_wrote(tmp_path):
    generator = torch.Generator().manual_seed(1)
    tensors = {name: torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for name, dtype in DTYPES.items()} | {
        "scalar": torch.tensor(1.5),
        "none": torch.empty(0),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text('{"a": 1}')
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == {"a": 1}
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        loaded = checkpoint.load(name)
        assert loaded.dtype == tensor.dtype
        assert torch.equal(loaded.double(), tensor.double())
    assert checkpoint.load("F16", torch.float32).dtype == torch.float32
    offsets = [tensor.offset for tensor in checkpoint.tensors.values()]
    assert offsets == sorted(offsets)


def sharded(folder):
    save_file({"a": torch.ones(4), "stray": torch.ones(1)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(4)}, folder / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")


def test_sharded_folders_have_all_tensors_of_their_shards(tmp_path):
    sharded(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["a", "stray", "b"]
    assert torch.equal(checkpoint.load("b"), torch.zeros(4))


def twins(folder, tensors):
    """The same checkpoint in two folders, and the weights file of the second."""
    for name in ("one", "same"):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text("{}")
    return open_checkpoint(folder / "one"), folder / "same" / "model.safetensors"


@contextmanager
def edited(path, place, new):
    """Bytes of a file, changed for a while."""
    with path.open("r+b") as file:
        file.seek(place)
        was = file.read(len(new))
        file.seek(place)
        file.write(new)
        file.flush()
        yield
        file.seek(place)
        file.write(was)


def test_fingerprints_differ_with_any_byte_sampled_and_not_with_the_place(tmp_path):
    """16 pieces of 256 bytes of a large tensor: each of them alone counts, to its last byte."""
    checkpoint, other = twins(tmp_path, {"a": torch.ones(400 * PAGE // 4)})
    original, start = checkpoint.fingerprint(), checkpoint.tensor("a").offset
    assert open_checkpoint(other.parent).fingerprint() == original
    for piece in range(16):
        for byte in (0, 255):
            with edited(other, start + (400 * PAGE - 256) * piece // 15 + byte, b"x"):
                assert open_checkpoint(other.parent).fingerprint() != original
    assert open_checkpoint(other.parent).fingerprint() == original


def test_a_fingerprint_notices_a_change_to_any_one_tensor(tmp_path):
    """As when an adapter is merged into one projection of a large model."""
    sizes = (4, PAGE, PAGE + 4, 40 * PAGE)
    tensors = {f"{i}": torch.ones(sizes[i % 4] // 4) for i in range(40)}
    checkpoint, other = twins(tmp_path, tensors)
    original = checkpoint.fingerprint()
    for tensor in checkpoint.tensors.values():
        for part in range(4):  # of a fused weight, perhaps one part only
            with edited(other, tensor.offset + tensor.nbytes * part // 4, b"\1" * (tensor.nbytes // 4)):
                assert open_checkpoint(other.parent).fingerprint() != original, (tensor, part)
    assert open_checkpoint(other.parent).fingerprint() == original


def no_folder(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def cut(name, keep):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:keep])

    return damage


def bad_sizes(folder):
    header = json.dumps({"b": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}).encode()
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (no_folder, "is not a folder"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "config.json").write_text('{"a": '), "config.json: is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: is not a JSON object"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "has neither model.safetensors nor"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "has no weight_map"),
        (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "names model-00002-of-00002"),
        (cut("model-00001-of-00002.safetensors", 0), "truncated"),
        (cut("model-00001-of-00002.safetensors", 60), "truncated"),
        (cut("model-00001-of-00002.safetensors", -1), "truncated: "),
        (
            lambda folder: save_file({"c": torch.ones(1)}, folder / "model-00002-of-00002.safetensors"),
            "places b in model-00002-of-00002.safetensors, and no shard has it",
        ),
        (bad_sizes, "broken safetensors header"),
    ],
)
def test_damaged_folders_are_named_in_one_line(tmp_path, damage, says):
    folder = tmp_path / "model"
    folder.mkdir()
    sharded(folder)
    damage(folder)
    with pytest.raises(InputError, match=says) as caught:
        open_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_noise_in_a_header_never_ends_in_another_error(tmp_path):
    save_file({"a": torch.ones(4), "b": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    good = (tmp_path / "model.safetensors").read_bytes()
    noise = random.Random(0)
    rejected = 0
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(noise.randint(1, 3)):
            bad[noise.randrange(len(bad) - 32)] = noise.randrange(256)
        (tmp_path / "model.safetensors").write_bytes(bad)
        try:
            open_checkpoint(tmp_path)
        except InputError:
            rejected += 1
    assert rejected > 100
