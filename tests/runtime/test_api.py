"""The Python API answers as the command line does."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from calib_data.sources import open_documents
from console.errors import InputError
from runtime import Model

from .commands import ENVIRONMENT, generated
from .damage import edit_json

OPTIONS = {
    "greedy": ({"temperature": 0}, ("--temperature", 0)),
    "recommended": ({"seed": 3}, ("--seed", 3)),
    "sampled": (
        {"seed": 3, "temperature": 2.0, "top_p": 0.9, "top_k": 40, "presence_penalty": 0.5, "thinking": True},
        ("--seed", 3, "--temperature", 2, "--top-p", 0.9, "--top-k", 40, "--presence-penalty", 0.5, "--thinking"),
    ),
    "drafted": ({"temperature": 0, "draft_tokens": 2}, ("--temperature", 0, "--draft-tokens", 2)),
    "budget": (
        {"temperature": 0, "thinking": True, "thinking_budget": 2},
        ("--temperature", 0, "--thinking", "--thinking-budget", 2),
    ),
}


@pytest.fixture(scope="module")
def model(exported):
    return Model.load(str(exported("fp16")))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    (document,) = open_documents(split="evaluation", count=1, seed=5, kind="line")
    path = tmp_path_factory.mktemp("api") / "line.png"
    document.image.save(path)
    return path


@pytest.mark.parametrize("case", OPTIONS)
def test_ask_is_the_answer_of_the_command(case, model, page, command):
    options, arguments = OPTIONS[case]
    answer = model.ask("Read the text.", images=[page], max_new_tokens=20, **options)
    shared = "--model", model.folder, "--image", page, "--prompt", "Read the text.", "--max-new-tokens", 20
    expected = generated(command, *shared, *arguments)
    assert (answer.text, answer.reasoning, answer.tokens) == tuple(expected[n] for n in ("text", "reasoning", "tokens"))
    assert answer.prompt_tokens == expected["prompt_tokens"]
    assert (answer.reasoning_tokens, answer.budget_spent) == (
        expected["reasoning_tokens"],
        expected["thinking_budget_spent"],
    )
    assert answer.budget_spent == (case == "budget")
    assert answer.finish_reason == {"end": "stop", "length": "length"}[expected["finish"]]
    assert answer.first_token_seconds > 0
    assert answer.tokens_per_second > 0
    drafts = answer.drafts
    assert (drafts is not None) == ("decoder_calls" in expected)
    if case == "drafted":
        assert (drafts.calls, drafts.acceptance) == (expected["decoder_calls"], expected["draft_acceptance"])


@pytest.mark.parametrize("thinking", [False, True])
def test_streamed_pieces_join_to_the_answer(thinking, model, page):
    options = {"images": [page], "temperature": 0, "max_new_tokens": 20, "thinking": thinking}
    stream = model.stream("Read the text.", **options)
    pieces = list(stream)
    answer = model.ask("Read the text.", **options)
    assert stream.finish().tokens == answer.tokens
    assert len(pieces) > 1
    assert all(pieces)
    reasoned = thinking and model.chat.think_end_id in answer.tokens
    assert "".join(pieces) == answer.reasoning + ("\n</think>\n\n" if reasoned else "") + answer.text


def test_a_stream_that_was_left_is_finished(model, page):
    stream = model.stream("Read the text.", [page], temperature=0, max_new_tokens=20)
    next(iter(stream))
    assert stream.finish().tokens == model.ask("Read the text.", [page], temperature=0, max_new_tokens=20).tokens


def test_an_image_is_a_path_or_a_pil_image(model, page):
    with Image.open(page) as image:
        answers = [
            model.ask("Read the text.", given, temperature=0, max_new_tokens=20) for given in ([page], str(page), image)
        ]
    assert answers[0].tokens == answers[1].tokens == answers[2].tokens


def test_the_pages_of_a_pdf_and_a_folder_of_frames(model, page, tmp_path):
    pytest.importorskip("pypdfium2")
    with Image.open(page) as image:
        image.convert("RGB").save(tmp_path / "scan.pdf", "PDF", save_all=True, append_images=[image.convert("RGB")])
        (tmp_path / "film").mkdir()
        for number in range(2):
            image.save(tmp_path / "film" / f"{number}.png")
    short = {"temperature": 0, "max_new_tokens": 1}
    one = model.ask("Read the text.", [page], **short).prompt_tokens
    text = model.ask("Read the text.", **short).prompt_tokens
    assert model.ask("Read the text.", [page, page], **short).prompt_tokens > one > text
    assert model.ask("Read the text.", [tmp_path / "scan.pdf"], **short).prompt_tokens > one
    assert model.ask("Read the text.", videos=[tmp_path / "film"], **short).prompt_tokens > text


@pytest.mark.parametrize("name", ["missing.png", "text.png"])
def test_an_image_that_cannot_be_read_is_an_input_error(name, model, tmp_path):
    (tmp_path / "text.png").write_text("This is not an image.")
    for ask in (model.ask, model.stream):
        with pytest.raises(InputError, match=name):
            ask("Read the text.", [tmp_path / name])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens 0: must be 1 or more"),
        ({"temperature": -1}, "--temperature -1: must be 0"),
        ({"draft_tokens": 9}, "--draft-tokens 9: write auto, or a number from 0 to 8"),
        ({"draft_tokens": "two"}, "--draft-tokens two: write auto"),
    ],
)
def test_an_option_out_of_range_is_an_input_error(options, says, model):
    with pytest.raises(InputError, match=says):
        model.ask("Hello", **options)


def test_what_the_command_refuses_is_refused(model, page):
    with pytest.raises(InputError, match="--prompt: is empty"):
        model.ask(" ", page)
    with pytest.raises(InputError, match=r"--fps 2.0: has no effect without a video"):
        model.ask("Read the text.", page, fps=2.0)
    for options, name in (({"memory_limit": 8}, "--memory-limit"), ({"cuda_graph": True}, "--cuda-graph")):
        with pytest.raises(InputError, match=f"{name}: is for a GPU"):
            Model.load(model.folder, **options)


def test_a_closed_stream_gives_its_cache_back(exported, page):
    model = Model.load(exported("fp16"))
    stream = model.stream("Read the text.", page, temperature=0, max_new_tokens=20, draft_tokens=0)
    next(iter(stream))
    assert model.decoder._spare is None
    stream.close()
    assert model.decoder._spare is not None


def test_an_unknown_option_is_a_type_error(model):
    with pytest.raises(TypeError, match="unknown options: temprature"):
        model.ask("Hello", temprature=0)


def test_an_unloaded_model_answers_as_before(exported):
    model = Model.load(exported("fp16"))
    first = model.ask("Hello", temperature=0, max_new_tokens=5, draft_tokens=1)
    decoder = model.decoder
    model.unload()
    assert model.ask("Hello", temperature=0, max_new_tokens=5, draft_tokens=1).tokens == first.tokens
    assert model.decoder is not decoder


def test_an_empty_answer_has_no_speed(copied):
    first = Model(copied).ask("Hello", temperature=0, max_new_tokens=1).tokens
    edit_json(copied / "generation_config.json", eos_token_id=[1, *first])
    answer = Model(copied).ask("Hello", temperature=0)
    assert (answer.text, answer.tokens, answer.finish_reason) == ("", [], "stop")
    assert answer.first_token_seconds is answer.tokens_per_second is None


def test_the_package_imports_no_onnx_runtime():
    code = "import runtime, sys; from runtime.inputs import windows; print('onnxruntime' in sys.modules, dir(runtime))"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False")
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from runtime import Nothing  # noqa: F401


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_new_tokens": value} for value in (1.5, None, "5")),
        *({"thinking": True, "thinking_budget": value} for value in (1.5, "5", [3])),
        *({"temperature": 1, "seed": value} for value in (1.5, "5")),
        *({"temperature": 1, "top_k": value} for value in (1.5, "5")),
        *({name: "5"} for name in ("temperature", "top_p", "presence_penalty")),
        {"thinking": "yes"},
    ],
    ids=str,
)
def test_an_option_of_another_kind_is_refused(wrong, model):
    """At most 1.5 tokens would be an answer without end."""
    name = list(wrong)[-1].replace("_", "-")
    with pytest.raises(InputError, match=rf"^--{name} .*: must be (a whole number|a number|True or False)$"):
        model.ask("a question", **wrong)


def test_numbers_of_numpy_are_numbers(model):
    found = [
        model.ask("a question", max_new_tokens=n, temperature=t).tokens
        for n, t in ((3, 0), (np.int64(3), np.float32(0)))
    ]
    assert found[0] == found[1]


def test_a_policy_learns_from_one_answer_to_the_next(exported, picture):
    """Eight answers of a few tokens each are more than one trial."""
    model = Model(exported("w4"), "cpu")
    answers = [model.ask("Read the text.", picture, temperature=0, max_new_tokens=20) for _ in range(8)]
    assert len({tuple(answer.tokens) for answer in answers}) == 1
    # A policy that began anew would take the same turns in each.
    assert len({answer.drafts and (answer.drafts.calls, answer.drafts.drafted) for answer in answers}) > 1
