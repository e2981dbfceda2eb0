"""Models and documents that are refused before anything is measured, and a re-saved tokenizer that is accepted."""

import json
import struct

import pytest
from tokenizers import Tokenizer

from calib_data.sources import open_documents
from runtime.compare.measuring.predictions import token_ids
from runtime.ort.manifest import describe_header

from ...damage import WEIGHTS, edit_json, set_context

DOWN = "model.language_model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def refused(command, exported, copied, tmp_path):
    """The error of comparing a changed folder; no output folder is left."""

    def run(*arguments):
        output = tmp_path / "out"
        models = "--baseline", exported("fp16"), "--model", copied
        code, out, err = command("compare", *models, "--output", output, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert not output.exists()
        return err

    return run


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_tokenizer_in_another_encoding_is_the_same(encoding, command, exported, copied):
    path = copied / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    models = "--baseline", exported("fp16"), "--model", copied
    assert command("compare", *models, "--count", 1, "--max-drop-anls", 1)[0] == 0


def test_a_tokenizer_that_was_saved_again_is_the_same(command, exported, copied):
    path = copied / "tokenizer.json"
    before = path.read_bytes()
    Tokenizer.from_file(str(path)).save(str(path), pretty=b"\n  " not in before)
    assert path.read_bytes() != before
    models = "--baseline", exported("fp16"), "--model", copied
    assert command("compare", *models, "--count", 1, "--max-drop-anls", 1)[0] == 0


def test_another_chat_template_is_another_model(refused, copied):
    path = copied / "chat_template.jinja"
    path.write_text(path.read_text() + "Well.")
    err = refused("--count", 2)
    assert f"{copied}: its tokens of evaluation/0/mix/0 are not those of" in err
    assert "chat template" in err


def test_other_image_settings_are_another_model(refused, copied):
    edit_json(copied / "preprocessor_config.json", image_mean=[0.4, 0.5, 0.5])
    assert f"{copied}: its image settings are not those of" in refused("--count", 1)


def test_a_document_that_does_not_fit_is_found_first(refused, reader, copied):
    documents = open_documents(split="evaluation", count=6, seed=0)
    lengths = [len(token_ids(reader, document)) for document in documents]
    longest = lengths.index(max(lengths))
    assert longest > 0
    set_context(copied, max(lengths) - 1)
    assert refused("--count", 6) == (
        f"error: {documents[longest].name}: prompt and known answer: {max(lengths)} tokens, the context of {copied} is "
        f"{max(lengths) - 1}; shorten them\n"
    )


def test_linears_of_other_widths_and_broken_reports_are_found_at_once(refused, copied):
    (copied / "quantization_report.json").write_text("{}")
    assert "quantization_report.json: linears is missing" in refused("--count", 1)
    (copied / "quantization_report.json").unlink()
    path = copied / WEIGHTS
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header[DOWN]["shape"].reverse()
    content[8 : 8 + length] = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(content)
    stored = json.loads((copied / "runtime.json").read_text())["weights"]
    stored[WEIGHTS]["header_sha256"] = describe_header(path)[1]
    edit_json(copied / "runtime.json", weights=stored)
    assert "down_proj: [768, 256] weights, the baseline has [256, 768]; give folders of one model" in refused()
