"""The command: its numbers against transformers on the same weights, its gates, and resuming."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
import torch

from calib_data.sources import open_documents, split_of_picture
from runtime.compare.measuring.progress import Progress
from runtime.compare.report.junit import write_junit
from runtime.evaluate import score
from runtime.model import Model
from runtime.ort.manifest import hash_file, load_manifest

from ..commands import assert_one_line, process
from ..damage import WEIGHTS, change_tensor, edit_json
from .pages import comparison, measured
from .references import END, answer_logits

DOCUMENTS, SEED = 12, 3


def compare(command, baseline, model, *arguments):
    """Exit code, and what is printed of one candidate, with the baseline under "baseline"."""
    code, out, err = command("compare", "--baseline", baseline, "--model", model, "--json", *arguments)
    assert out.count("\n") == 1, err
    result = json.loads(out)
    return code, {**result["candidates"][0], "baseline": result["baseline"], "about": result}


@pytest.fixture(scope="module")
def w4_result(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The exit code of comparing w4 with fp16, and what compare.json says of it; several tests read it."""
    folder = tmp_path_factory.mktemp("w4") / "out"
    models = "--baseline", exported("fp16"), "--model", exported("w4")
    done = process("compare", *models, "--count", DOCUMENTS, "--seed", SEED, "--output", folder, cwd=folder.parent)
    content = json.loads((folder / "compare.json").read_text())
    return {"code": done.returncode, **content["candidates"][0], "baseline": content["baseline"]}


def test_numbers_are_those_of_transformers(w4_result: dict, exported: Callable[[str], Path]):
    """KL, agreement and perplexity of a 4-bit folder, each model loaded from its folder by transformers itself."""
    documents = open_documents(split="evaluation", count=DOCUMENTS, seed=SEED)
    log_p, log_q = (
        torch.cat(answer_logits(exported(name), documents)).double().log_softmax(-1) for name in ("fp16", "w4")
    )
    kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    chat = Model(exported("fp16"), "cpu").chat
    truth = torch.tensor([token for document in documents for token in [*chat.encode_text(document.answer), END]])
    perplexities = [float((-part.gather(1, truth[:, None]).mean()).exp()) for part in (log_p, log_q)]
    result = w4_result
    assert result["mean_kl"]["value"] == pytest.approx(kl.mean().item(), rel=1e-3)
    assert 0 < result["mean_kl"]["low"] < result["mean_kl"]["value"] < result["mean_kl"]["high"]
    assert result["agreement"]["value"] == (log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item()
    assert [result["baseline"]["perplexity"], result["perplexity"]] == pytest.approx(perplexities, rel=1e-3)
    assert result["perplexity_ratio"]["value"] == pytest.approx(perplexities[1] / perplexities[0], rel=1e-3)


def test_a_folder_is_no_distance_from_itself(command, exported):
    gates = "--max-drop-anls", 0, "--max-kl", 0, "--min-agreement", 1
    code, result = compare(command, exported("fp16"), exported("fp16"), "--count", 3, *gates)
    nothing, one = {"value": 0.0, "low": 0.0, "high": 0.0}, {"value": 1.0, "low": 1.0, "high": 1.0}
    assert code == 0
    assert (result["mean_kl"], result["agreement"], result["perplexity_ratio"]) == (nothing, one, one)
    assert result["differences"] == dict.fromkeys(("exact_match", "cer", "anls"), nothing)
    assert (result["answers_changed"], result["first_change"]) == (0, None)
    assert result["exact_match_test"] == {"only_baseline": 0, "only_candidate": 0, "p": 1.0}
    assert set(result["kl_by_position"]) == {0.0}
    assert {layer["error"] for layer in result["layers"]} == {0.0}
    assert result["scores"] == result["baseline"]["scores"]
    assert {name: result["about"][name] for name in ("count", "kind", "seed", "source")} == {
        "count": 3,
        "kind": None,
        "seed": 0,
        "source": "rendered",
    }


@pytest.fixture
def own_answers(tmp_path: Path, reader: Model) -> Path:
    """A source of one document whose true answer is that of the fp16 reader."""
    lines, name = open_documents(split="evaluation", count=20, seed=30, kind="line"), "line.png"
    document = next(line for line in lines if split_of_picture(line.image) == "evaluation")
    document.image.save(tmp_path / name)
    row = {"image": name, "prompt": document.prompt, "answer": score(reader, document)[0].answer}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    return tmp_path / "own.jsonl"


def test_the_gate_stops_a_damaged_folder(command, exported, own_answers, copied):
    """The rows of the head are shifted by a token: no answer survives, though the folder is valid."""
    change_tensor(copied, "lm_head.weight", lambda weight: np.roll(weight, 1, axis=0))
    arguments = "--documents", own_answers
    code, result = compare(command, exported("fp16"), copied, *arguments)
    assert code == 1
    assert result["baseline"]["scores"] == {"exact_match": 1.0, "cer": 0.0, "anls": 1.0}
    assert result["scores"]["anls"] < 0.98
    check, _ = result["verdict"]["checks"]
    assert check["value"] == 1.0 - result["scores"]["anls"]
    assert (result["verdict"]["passed"], result["answers_changed"]) == (False, 1)
    assert result["mean_kl"]["value"] > 0.01
    code, result = compare(command, copied, exported("fp16"), *arguments)
    # The candidate is better than its baseline, but the baseline is too weak to judge by.
    assert (code, result["verdict"]["passed"]) == (1, False)
    assert result["verdict"]["checks"][0]["value"] < 0
    loose = "--max-drop-anls", 1, "--max-unfinished", 1
    code, out, _ = command("compare", "--baseline", exported("fp16"), "--model", copied, *arguments, *loose)
    assert code == 0
    assert "1 documents" in out
    assert "--max-drop-anls 1.0: passes" in out


def test_the_default_gate_stops_one_corrupted_layer_and_not_4_bits(command, exported, w4_result, copied):
    assert w4_result["code"] == 0
    arguments = "--count", DOCUMENTS, "--seed", SEED
    change_tensor(copied, "model.language_model.layers.1.mlp.down_proj.weight", lambda weight: np.roll(weight, 1, 0))
    code, result = compare(command, exported("fp16"), copied, *arguments)
    assert code == 1
    check, _ = result["verdict"]["checks"]
    assert check["value"] > check["limit"] == 0.02
    assert [layer["name"] for layer in result["layers"] if layer["suspect"]] == [
        "model.language_model.layers.1.mlp.down_proj"
    ]


def test_folders_of_different_models_are_refused(command, exported, copied):
    path = copied / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer))
    code, out, err = command("compare", "--baseline", exported("fp16"), "--model", copied, "--count", 1)
    assert (code, out) == (2, "")
    assert err == f"error: {copied}: its vocabulary is not that of {exported('fp16')}; give folders of one model\n"
    shutil.copy(exported("fp16") / "tokenizer.json", path)
    runtime = json.loads((copied / "runtime.json").read_text())
    smaller = {"text": {**runtime["text"], "vocab_size": 511}}
    edit_json(copied / "runtime.json", **smaller, embeddings={**runtime["embeddings"], "shape": [511, 256]})
    assert command("compare", "--baseline", exported("fp16"), "--model", copied, "--count", 1) == (2, "", err)


def test_a_quantized_baseline_is_said(command, exported):
    _, result = compare(command, exported("w4"), exported("w4"), "--count", 1)
    assert result["verdict"]["findings"][0].startswith("The baseline is 4-bit, not FP16")
    _, result = compare(command, exported("fp16"), exported("w4"), "--count", 1)
    assert not any("4-bit" in finding for finding in result["verdict"]["findings"])


def test_a_missing_baseline_is_named(command, exported):
    code, out, err = command("compare", "--model", exported("fp16"))
    assert (code, out) == (2, "")
    assert "--baseline" in err
    code, out, err = command("compare", "--model", exported("fp16"), "--baseline", "nowhere", "--count", 1)
    assert (code, out) == (2, "")
    assert err.startswith("error: nowhere: no such folder")


def untimed(value):
    """The same without timings, and with the tolerance that another number of threads needs."""
    if isinstance(value, dict):
        left_out = ("seconds", "resident", "tokens_per_second")
        return {key: untimed(part) for key, part in value.items() if key not in left_out}
    if isinstance(value, list):
        return [untimed(part) for part in value]
    return pytest.approx(value, rel=1e-5, abs=1e-7) if isinstance(value, float) else value


def test_a_stopped_comparison_resumes(command, exported, tmp_path):
    """Finished lines are not measured again, half a line is; the result equals that of one run."""
    arguments = "--baseline", exported("fp16"), "--model", exported("w4"), "--count", 4
    assert command("compare", *arguments, "--output", tmp_path / "whole")[0] == 0
    lines = (tmp_path / "whole" / "documents.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 5
    second = json.loads(lines[2])
    second["candidates"][0]["scored"]["answer"] = "as it was left"
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    kept = [*lines[:2], json.dumps(second) + "\n", lines[3][:100]]
    (stopped / "documents.jsonl").write_text("".join(kept))
    code, _, err = command("compare", *arguments, "--output", stopped, "--jobs", 2)
    assert (code, err.splitlines()[0]) == (0, "resumed: 2 of 4 documents are done")
    results = [json.loads((folder / "compare.json").read_text()) for folder in (tmp_path / "whole", stopped)]
    assert results[1]["documents"][1]["candidates"][0]["scored"]["answer"] == "as it was left"
    results[1]["documents"][1] = results[0]["documents"][1]
    assert untimed(results[0]) == untimed(results[1])
    code, out, err = command("compare", *arguments, "--seed", 1, "--output", stopped)
    assert (code, out) == (2, "")
    assert err == f"error: {stopped}: holds a comparison of other models or documents; give another --output\n"


def test_a_comparison_does_not_resume_with_other_weights_or_graphs(command, exported, copied, tmp_path):
    """A rewritten tensor is noticed, even with its old time of change, and so is a graph that was made again."""
    models = "--baseline", exported("fp16"), "--model", copied
    arguments = (*models, "--count", 1, "--max-drop-anls", 1, "--output", tmp_path / "out")
    assert command("compare", *arguments)[0] == 0
    weights = copied / WEIGHTS
    times, content = weights.stat(), weights.read_bytes()
    change_tensor(copied, "lm_head.weight", lambda weight: np.roll(weight, 1, axis=0))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    refused = f"error: {tmp_path / 'out'}: holds a comparison of other models or documents; give another --output\n"
    assert command("compare", *arguments) == (2, "", refused)
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert command("compare", *arguments)[0] == 0
    os.utime(weights)
    assert command("compare", *arguments) == (2, "", refused)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    graph = copied / load_manifest(copied).targets["cpu"].decoder
    model = onnx.load(graph, load_external_data=False)
    model.producer_name = "another"
    onnx.save(model, graph)
    targets = json.loads((copied / "runtime.json").read_text())["targets"]
    targets["cpu"]["graphs"][graph.name] = hash_file(graph)
    edit_json(copied / "runtime.json", targets=targets)
    assert command("compare", *arguments) == (2, "", refused)


def test_two_comparisons_do_not_write_one_folder(exported, tmp_path):
    output = tmp_path / "out"
    with Progress(output, {}):
        arguments = "--baseline", exported("fp16"), "--model", exported("fp16"), "--count", 1, "--output", output
        result = process("compare", *arguments, cwd=tmp_path)
    says = f"{output} is being written by another run; wait for it or give another folder"
    assert_one_line((result.returncode, result.stdout, result.stderr), says)
    assert not output.exists()


def test_several_candidates_are_each_what_they_are_alone(command, exported):
    arguments = "--baseline", exported("fp16"), "--count", 2, "--json"
    both = json.loads(command("compare", *arguments, "--model", exported("w4"), "--model", exported("nf4"))[1])
    for candidate, name in zip(both["candidates"], ("w4", "nf4"), strict=True):
        alone = json.loads(command("compare", *arguments, "--model", exported(name))[1])["candidates"][0]
        assert untimed(candidate) == untimed(alone)


def test_gates_are_written_as_junit(command, exported, tmp_path):
    path, models = tmp_path / "gates.xml", ("--model", exported("w4"), "--model", exported("fp16"))
    arguments = "--baseline", exported("fp16"), *models, "--count", 3, "--max-kl", 1e-9, "--max-drop-anls", 1
    assert command("compare", *arguments, "--junit", path)[0] == 1
    suites = ET.parse(path).getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites] == [str(exported("w4")), str(exported("fp16"))]
    assert [(suite.get("tests"), suite.get("failures")) for suite in suites] == [("3", "1"), ("3", "0")]
    failure = suites[0].find("testcase[@name='--max-kl']/failure")
    assert failure.get("message").startswith("mean KL 0.000")


def test_names_that_are_not_utf8_are_shown_as_the_terminal_does(exported, tmp_path):
    """Of pages and of their folder; compare.json gives them as they are."""
    source = tmp_path / os.fsdecode(b"s\xe9ances")
    source.mkdir()
    for number, document in enumerate(open_documents(split="evaluation", count=12, seed=2)):
        page = source / os.fsdecode(b"p\xe4ge-%d.png" % number)
        document.image.save(page)
        page.with_suffix(".txt").write_text(document.answer)
    names = [document.name for document in open_documents(str(source), split="evaluation", count=2)]
    arguments = ["compare", "--baseline", exported("fp16"), "--model", exported("fp16"), "--documents", source.name]
    arguments += ["--count", 2, "--max-kl", 1, "--max-drop-anls", 1]
    kept = process(*arguments, "--output", "out", "--junit", "gates.xml", cwd=tmp_path)
    printed = process(*arguments, "--output", "out", "--json", cwd=tmp_path)
    assert (kept.returncode, printed.returncode, kept.stderr) == (0, 0, "")
    assert printed.stderr == "resumed: 2 of 2 documents are done\n"
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert content["source"] == json.loads(printed.stdout)["source"] == source.name
    assert [one["name"] for one in content["documents"]] == names
    page = (tmp_path / "out" / "report.html").read_text()
    assert "of the evaluation split of s\\udce9ances, seed 0" in page
    assert all("<h3>{}</h3>".format(name.replace("\udce4", "\\udce4")) in page for name in names)


def test_junit_is_xml_whatever_the_names(tmp_path):
    documents = [measured("0", "total 0", "total 0", "total 0")]
    write_junit(comparison(documents, "out/\udcfc합계"), tmp_path / "gates.xml")
    (suite,) = ET.parse(tmp_path / "gates.xml").getroot()
    assert suite.get("name") == "out/\\udcfc합계"


@pytest.fixture
def kept(exported) -> Path:
    """A 4-bit folder with a reference.npz: predictions of the unquantized model."""
    return exported("w4")


def test_a_reference_gives_the_divergence_of_the_folder(command, exported, kept):
    """Up to the probability outside the 128 likeliest of 512 tokens."""
    _, by_reference = compare(command, kept / "reference.npz", kept, "--max-kl", 1)
    _, by_folder = compare(command, exported("fp16"), kept, "--count", 6)
    assert by_reference["mean_kl"]["value"] == pytest.approx(by_folder["mean_kl"]["value"], rel=1e-3)
    assert by_reference["baseline"]["perplexity"] == pytest.approx(by_folder["baseline"]["perplexity"], rel=1e-4)
    assert by_reference["agreement"] == by_folder["agreement"]
    assert by_reference["scores"] == by_folder["scores"]
    (turn,), (expected,) = by_reference["control_tokens"], by_folder["control_tokens"]
    assert untimed(turn) == {
        name: pytest.approx(value, rel=1e-3, abs=1e-6) if isinstance(value, float) else untimed(value)
        for name, value in expected.items()
        if name != "kl"
    } | {"kl": turn["kl"]}
    assert turn["kl"]["value"] == pytest.approx(expected["kl"]["value"], rel=1e-2, abs=1e-7)
    assert by_reference["endings"] == by_folder["endings"]
    for name in ("differences", "answers_changed", "exact_match_test", "ending_changes"):
        assert by_reference[name] is None
    assert by_reference["baseline"]["scores"] is None
    assert {layer["error"] for layer in by_reference["layers"]} == {None}


def test_a_reference_and_a_candidate_have_the_same_image_settings(command, kept, tmp_path):
    """References of older versions have no image settings and are accepted."""
    folder, reference = tmp_path / "w4", kept / "reference.npz"
    shutil.copytree(kept, folder)
    edit_json(folder / "preprocessor_config.json", image_mean=[0.4, 0.5, 0.5])
    code, out, err = command("compare", "--baseline", reference, "--model", folder)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {folder}: its image settings are not those that {reference} was made with; ")
    with np.load(reference) as stored:
        content = dict(stored)
    source = json.loads(str(content["source"]))
    del source["images"]
    np.savez(folder / "reference.npz", **content | {"source": np.array(json.dumps(source))})
    assert compare(command, folder / "reference.npz", folder, "--count", 1, "--max-kl", 100)[0] == 0


def test_references_that_are_refused(command, exported, kept, tmp_path):
    def refused(path, *arguments):
        code, out, err = command("compare", "--baseline", path, "--model", kept, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    assert "no such file; python -m quantize writes it" in refused(tmp_path / "reference.npz")
    (tmp_path / "reference.npz").write_bytes(b"PK broken")
    assert "not a reference written by quantize" in refused(tmp_path / "reference.npz")
    assert "a reference has documents of its own" in refused(kept / "reference.npz", "--seed", 3)
    elsewhere = refused(kept / "reference.npz", "--documents", tmp_path / "moved")
    assert f"reference.npz: its documents: {tmp_path / 'moved'}: no such file or folder" in elsewhere
    with np.load(kept / "reference.npz") as stored:
        content = dict(stored)
    np.savez(tmp_path / "reference.npz", **content | {"document": content["document"][::-1]})
    assert "is not the document that was kept: pages have been added" in refused(tmp_path / "reference.npz")
    content["ids"][0] += 1  # of the question
    np.savez(tmp_path / "reference.npz", **content)
    assert "its tokens of evaluation/0/mix/0 are not those of" in refused(tmp_path / "reference.npz")
