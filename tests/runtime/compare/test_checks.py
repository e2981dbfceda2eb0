"""What is refused before anything is measured, and what is not: a tokenizer that was only saved again."""

import pytest
from tokenizers import Tokenizer

from ..damage import edit_json


@pytest.fixture
def refused(command, exported, copied, tmp_path):
    """The error of comparing a changed folder, and that no document was measured."""

    def run(*arguments):
        output = tmp_path / "out"
        models = "--baseline", exported("fp16"), "--model", copied
        code, out, err = command("compare", *models, "--output", output, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        lines = output / "documents.jsonl"
        assert not lines.exists() or lines.read_text().count("\n") == 1
        return err

    return run


def test_a_tokenizer_that_was_saved_again_is_the_same(command, exported, copied):
    path = copied / "tokenizer.json"
    before = path.read_bytes()
    Tokenizer.from_file(str(path)).save(str(path), pretty=b"\n  " not in before)
    assert path.read_bytes() != before
    models = "--baseline", exported("fp16"), "--model", copied
    assert command("compare", *models, "--documents", 1, "--max-drop-anls", 1)[0] == 0


def test_another_chat_template_is_another_model(refused, copied):
    path = copied / "chat_template.jinja"
    path.write_text(path.read_text() + "Well.")
    err = refused("--documents", 2)
    assert f"{copied}: its tokens of evaluation/0/mix/0 are not those of" in err
    assert "chat template" in err


def test_other_image_settings_are_another_model(refused, copied):
    edit_json(copied / "preprocessor_config.json", image_mean=[0.4, 0.5, 0.5])
    assert f"{copied}: its image settings are not those of" in refused("--documents", 1)
