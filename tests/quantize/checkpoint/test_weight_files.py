"""Which weights of a folder count: those that transformers loads from it, or a refusal in one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Exaone4Config

from console.errors import InputError
from quantize.checkpoint.reader import open_checkpoint
from quantize.checkpoint.weight_files import INDEX, SINGLE
from quantize.model.families import find_family, model_config
from quantize.scheme import is_tied

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
HEAD, NORM = "lm_head.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A small text model in two shards, as transformers saves it."""
    torch.manual_seed(0)
    config = Exaone4Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["full_attention"] * 2, sliding_window=None, tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("original")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="30KB")
    shards = sorted(folder.glob("*.safetensors"))
    tensors = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    for path in shards:
        path.unlink()
    first = dict(list(tensors.items())[:5])
    second = {name: tensor for name, tensor in tensors.items() if name not in first}
    save(folder / ONE, first)
    save(folder / TWO, second)
    write_map(folder, {name: file for file, part in ((ONE, first), (TWO, second)) for name in part})
    return folder


def save(path, tensors):
    save_file(tensors, path, metadata={"format": "pt"})


def write_map(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_map(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


def change_map(change):
    def edit(folder):
        write_map(folder, change(read_map(folder)))

    return edit


def change_shard(file, change):
    def edit(folder):
        tensors = load_file(folder / file)
        change(tensors)
        save(folder / file, tensors)

    return edit


def without(name):
    return change_map(lambda files: {tensor: file for tensor, file in files.items() if tensor != name})


def move(name, file):
    return change_map(lambda files: files | {name: file})


def zeros(folder, files):
    """All tensors of some files, as zeros."""
    return {name: torch.zeros_like(tensor) for file in files for name, tensor in load_file(folder / file).items()}


def single_beside_index(folder):
    save(folder / SINGLE, zeros(folder, (ONE, TWO)))


def single_beside_broken_index(folder):
    single_beside_index(folder)
    (folder / INDEX).write_text("{")


def in_two_shards(first, second):
    """The norm in both shards; the index gives the first file that is named here, and the others are zeros."""

    def edit(folder):
        for file in (ONE, TWO):
            tensors = load_file(folder / file)
            tensors[NORM] = torch.full((32,), 1.0 if file == first else 2.0)
            save(folder / file, tensors)
        move(NORM, second)(folder)

    return edit


def unnamed_files(folder):
    """Weights that no index names, of other tools and in a folder below."""
    (folder / "original").mkdir()
    for name in (
        "consolidated.safetensors",
        "adapter_model.safetensors",
        "zzz.safetensors",
        "original/model.safetensors",
    ):
        save(folder / name, zeros(folder, (ONE, TWO)))


def renamed_shards(folder):
    """The second shard comes first by name, and a tensor is in both: names give the order, not the index."""
    (folder / TWO).rename(folder / "a.safetensors")
    write_map(folder, {name: file if file == ONE else "a.safetensors" for name, file in read_map(folder).items()})
    change_shard(ONE, lambda tensors: tensors.update({NORM: torch.full((32,), 3.0)}))(folder)


def hub_cache(folder):
    """A snapshot of the hub's cache: every file is a link to a blob."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / f"{i}")
        path.symlink_to(blobs / f"{i}")


def no_other_file(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": None}))


TAKEN = {
    "as saved": lambda folder: None,
    "a tensor that the index omits": without(HEAD),
    "a tensor that the index places in another shard": move(HEAD, ONE),
    "a single file beside an index": single_beside_index,
    "a single file beside a broken index": single_beside_broken_index,
    "a tensor in two shards, index: the first": in_two_shards(ONE, ONE),
    "a tensor in two shards, index: the second": in_two_shards(ONE, TWO),
    "shards in another order": renamed_shards,
    "files that the index does not name": unnamed_files,
    "links of the hub's cache": hub_cache,
    "no other file named": no_other_file,
}


@pytest.mark.parametrize("kind", TAKEN)
def test_the_weights_are_those_that_transformers_loads(original, tmp_path, kind):
    folder = shutil.copytree(original, tmp_path / "model")
    TAKEN[kind](folder)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    checkpoint = open_checkpoint(folder)
    assert checkpoint.files == sorted(checkpoint.files)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert parameters.keys() == checkpoint.tensors.keys()
    for name, parameter in parameters.items():
        assert torch.equal(checkpoint.load(name), parameter), name


def truncated(folder):
    (folder / TWO).write_bytes((folder / TWO).read_bytes()[:-1])


def too_long(folder):
    with (folder / TWO).open("ab") as file:
        file.write(bytes(4))


def overlapping(folder):
    """Two tensors of one place: a header that no library writes."""
    content = (folder / TWO).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name, other = [name for name in header if name.endswith("proj.weight") and header[name]["shape"] == [32, 64]][:2]
    header[other]["data_offsets"] = header[name]["data_offsets"]
    new = json.dumps(header).encode()
    (folder / TWO).write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])


def dangling(folder):
    hub_cache(folder)
    (folder / TWO).resolve().unlink()


REFUSED = {
    "a shard is missing": (lambda folder: (folder / TWO).unlink(), f"names {TWO}, which is not there"),
    "a link to nothing": (dangling, f"names {TWO}, which is not there"),
    "a shard is truncated": (truncated, "is truncated"),
    "a shard is too long": (too_long, "is too long"),
    "tensors overlap": (overlapping, "is damaged"),
    "a number": (move(HEAD, 5), f"places {HEAD} in 5, which is no name"),
    "null": (move(HEAD, None), f"places {HEAD} in None, which is no name"),
    "a list": (move(HEAD, [TWO]), "which is no name"),
    "an empty name": (move(HEAD, ""), f"places {HEAD} in '', which is no name"),
    "the folder": (move(HEAD, "."), f"places {HEAD} in '.', which is no name"),
    "no such folder": (move(HEAD, "../x.safetensors"), "which is no name"),
    "no weight_map": (lambda folder: (folder / INDEX).write_text('{"metadata": {}}'), "has no weight_map"),
    "an empty weight_map": (lambda folder: write_map(folder, {}), "has no weight_map"),
    "a list of weights": (lambda folder: write_map(folder, [ONE, TWO]), "has no weight_map"),
    "no JSON": (lambda folder: (folder / INDEX).write_text("{"), "is not valid JSON"),
    "no object": (lambda folder: (folder / INDEX).write_text("[]"), "is not a JSON object"),
    "no weights": (lambda folder: [(folder / name).unlink() for name in (ONE, TWO, INDEX)], "has neither"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_transformers_refuses_is_refused_in_one_line(original, tmp_path, kind):
    folder = shutil.copytree(original, tmp_path / "model")
    damage, says = REFUSED[kind]
    damage(folder)
    with pytest.raises(Exception):  # noqa: B017 (transformers raises a dozen kinds here)
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(InputError, match=str(folder)) as caught:
        open_checkpoint(folder)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def elsewhere(folder):
    """A shard beside the folder, by a name that leads out of it."""
    (folder / TWO).rename(folder.parent / TWO)
    write_map(folder, {name: file if file == ONE else f"../{TWO}" for name, file in read_map(folder).items()})


def absolute(folder):
    write_map(folder, {name: str(folder / file) for name, file in read_map(folder).items()})


def pickled(folder):
    tensors = {name: tensor for file in (ONE, TWO) for name, tensor in load_file(folder / file).items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    for name in (ONE, TWO, INDEX):
        (folder / name).unlink()


def another_file(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    save(folder / "other.safetensors", zeros(folder, (ONE, TWO)))


def adapter(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (elsewhere, f"in '../{TWO}', which is no name of a safetensors file next to it"),
        (absolute, f"{ONE}', which is no name of a safetensors file next to it"),
        (pickled, "has pytorch_model.bin, and only safetensors files are read; convert it"),
        (another_file, "config.json: transformers_weights names another weights file; remove the key"),
        (adapter, "adapter_config.json: an adapter that is not merged would be left out; merge it"),
        (move("model.layers.7.mlp.up_proj.weight", ONE), f"layers.7.mlp.up_proj.weight in {ONE}, and no shard has it"),
    ],
)
def test_what_only_transformers_takes_is_refused_in_one_line(original, tmp_path, change, says):
    """transformers loads all of these from the places given, or around what is missing."""
    folder = shutil.copytree(original, tmp_path / "model")
    change(folder)
    with pytest.raises(InputError, match=str(folder)) as caught:
        open_checkpoint(folder)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ties", [True, False, None])
@pytest.mark.parametrize("has_head", [True, False])
def test_the_head_is_tied_as_in_transformers(original, tmp_path, ties, has_head):
    """A head of its own counts, whatever the config says; a head that is neither stored nor tied is random there."""
    folder = shutil.copytree(original, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings")
    (folder / "config.json").write_text(json.dumps(config if ties is None else config | {"tie_word_embeddings": ties}))
    if not has_head:
        change_shard(TWO, lambda tensors: tensors.pop(HEAD))(folder)
        without(HEAD)(folder)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    checkpoint = open_checkpoint(folder)
    tied = is_tied(checkpoint, find_family(checkpoint.config), model_config(checkpoint.config))
    assert tied == (model.lm_head.weight is model.model.embed_tokens.weight)
    if not tied and not has_head:
        assert info["missing_keys"] == {HEAD}
        with pytest.raises(InputError, match=f"no tensor {HEAD}"):
            checkpoint.tensor(HEAD)
