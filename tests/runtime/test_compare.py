"""Divergence of two folders, against transformers and torch on the same weights, and the gate."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from calib_data.document import Document
from calib_data.sources import open_documents, split_of_item
from runtime.compare import divergence
from runtime.evaluate import score
from runtime.generate import Model

from .damage import change_tensor, edit_json

END = 53  # <|endofturn|>
DOCUMENTS, SEED = 2, 8


def compare(command, baseline, model, *arguments):
    code, out, _ = command("compare", "--baseline", baseline, "--model", model, "--json", *arguments)
    assert out.count("\n") == 1
    return code, json.loads(out)


@torch.no_grad()
def reference_logits(folder: Path, documents: list[Document]) -> list[torch.Tensor]:
    """What transformers predicts for each token of the true answers and their end, in float32."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)
    logits = []
    for document in documents:
        pixels = processor(document.image, return_tensors="pt")
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": document.prompt}]}
        text = tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        text = text.replace("<|image_pad|>", "<|image_pad|>" * (int(pixels["image_grid_thw"].prod()) // 4))
        prompt, answer = (tokenizer.encode(part, add_special_tokens=False) for part in (text, document.answer))
        ids = torch.tensor([[*prompt, *answer, END]])
        logits.append(
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels).logits[0, len(prompt) - 1 : -1]
        )
    return logits


def test_numbers_are_those_of_transformers(command: Callable, exported: Callable[[str], Path]):
    """mean_kl and token_agreement of a 4-bit folder, each model loaded from its folder by transformers itself."""
    documents = open_documents(split="evaluation", count=DOCUMENTS, seed=SEED)
    log_p, log_q = (
        torch.cat(reference_logits(exported(name), documents)).double().log_softmax(-1) for name in ("fp16", "w4")
    )
    kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    _, result = compare(command, exported("fp16"), exported("w4"), "--documents", DOCUMENTS, "--seed", SEED)
    assert result["mean_kl"] == pytest.approx(kl.mean().item(), rel=1e-3)
    assert result["mean_kl"] > 0
    assert result["token_agreement"] == (log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item()


def test_a_folder_is_no_distance_from_itself(command, exported):
    code, result = compare(command, exported("w4"), exported("w4"), "--documents", 2, "--max-drop", 0, "--kind", "line")
    assert code == 0
    assert (result["mean_kl"], result["token_agreement"], result["answers_changed"]) == (0.0, 1.0, 0)
    assert (result["anls_drop"], result["max_drop"], result["passed"]) == (0.0, 0.0, True)
    timing = ("seconds", "tokens_per_second")
    scores = [{k: v for k, v in result[name].items() if k not in timing} for name in ("baseline", "candidate")]
    assert scores[0] == scores[1]
    assert {name: result[name] for name in ("documents", "kind", "seed", "source")} == {
        "documents": 2,
        "kind": "line",
        "seed": 0,
        "source": "rendered",
    }


def test_divergence_of_distributions_known_by_hand():
    p, q = np.array([[0.5, 0.25, 0.25], [1 / 3] * 3]), np.array([[0.25, 0.25, 0.5], [1 / 3] * 3])
    logits = [np.log(part).astype(np.float32) + 7 for part in (p, q)]
    np.testing.assert_allclose(divergence(*logits), [0.25 * np.log(2), 0], atol=1e-6)
    huge = np.array([[3e4, 0, -3e4]], np.float32)
    np.testing.assert_allclose(divergence(huge, huge / 2), [0], atol=1e-12)
    np.testing.assert_allclose(divergence(huge[:, ::-1], huge), [6e4])


@pytest.fixture
def own_answers(tmp_path: Path, reader: Model) -> Path:
    """A source of one document whose true answer is that of the fp16 reader."""
    name = next(name for name in (f"{number}.png" for number in range(20)) if split_of_item(name) == "evaluation")
    (document,) = open_documents(split="evaluation", count=1, seed=30, kind="line")
    document.image.save(tmp_path / name)
    row = {"image": name, "prompt": document.prompt, "answer": score(reader, document)[0].answer}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    return tmp_path / "own.jsonl"


def test_the_gate_stops_a_damaged_folder(command, exported, own_answers, copied):
    """Each row of the head says the next token's logit: no answer survives, though the folder is a valid one."""
    change_tensor(copied, "lm_head.weight", lambda weight: np.roll(weight, 1, axis=0))
    arguments = "--source", own_answers
    code, result = compare(command, exported("fp16"), copied, *arguments)
    assert code == 1
    assert result["baseline"]["exact_match"] == result["baseline"]["anls"] == 1.0
    assert result["candidate"]["anls"] < 0.98
    assert result["anls_drop"] == 1.0 - result["candidate"]["anls"]
    assert (result["passed"], result["answers_changed"]) == (False, 1)
    assert result["mean_kl"] > 0.01
    code, result = compare(command, copied, exported("fp16"), *arguments)
    assert (code, result["passed"]) == (0, True)  # better than its baseline
    assert result["anls_drop"] < 0
    code, out, _ = command("compare", "--baseline", exported("fp16"), "--model", copied, *arguments, "--max-drop", 1)
    assert code == 0
    assert "1 documents, 1 answers changed" in out
    assert "allowed 1.0: passes" in out


def test_the_default_gate_stops_one_corrupted_layer_and_not_4_bits(command, exported, copied):
    arguments = "--documents", 24, "--seed", 3
    assert compare(command, exported("fp16"), exported("w4"), *arguments)[0] == 0
    change_tensor(copied, "model.language_model.layers.1.mlp.down_proj.weight", lambda weight: np.roll(weight, 1, 0))
    code, result = compare(command, exported("fp16"), copied, *arguments)
    assert code == 1
    assert result["anls_drop"] > result["max_drop"] == 0.02


def test_folders_of_different_models_are_refused(command, exported, copied):
    path = copied / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    code, out, err = command("compare", "--baseline", exported("fp16"), "--model", copied, "--documents", 1)
    assert (code, out) == (2, "")
    assert err == f"error: {copied}: its tokens are not those of {exported('fp16')}; give two folders of one model\n"
    shutil.copy(exported("fp16") / "tokenizer.json", path)
    runtime = json.loads((copied / "runtime.json").read_text())
    edit_json(copied / "runtime.json", text={**runtime["text"], "vocab_size": 511})
    assert command("compare", "--baseline", exported("fp16"), "--model", copied, "--documents", 1) == (2, "", err)


def test_a_missing_baseline_is_named(command, exported):
    code, out, err = command("compare", "--model", exported("fp16"))
    assert (code, out) == (2, "")
    assert "--baseline" in err
    code, out, err = command("compare", "--model", exported("fp16"), "--baseline", "nowhere", "--documents", 1)
    assert (code, out) == (2, "")
    assert err.startswith("error: nowhere: no such folder")
