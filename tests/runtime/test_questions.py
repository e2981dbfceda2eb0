"""Many pictures and many questions: a PDF's pages in one question, a JSONL file's lines in one load."""

import json
import math
import subprocess
import sys

import pytest
from PIL import Image

from calib_data.sources import open_documents
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.prompt import build_prompt

from .commands import ENVIRONMENT, assert_one_line, generated
from .damage import edit_json, set_context

pypdfium2 = pytest.importorskip("pypdfium2")

TIMES = {"load_seconds", "first_token_seconds", "tokens_per_second"}
COUNTS = {"decoder_calls", "draft_tokens", "draft_acceptance"}  # lines are drafted for while they are alone
NO_DRAFTS = ("--draft-tokens", 0)  # what auto chooses depends on time


@pytest.fixture(scope="module")
def pictures():
    return [document.image for document in open_documents(split="evaluation", count=3, seed=5, kind="line")]


@pytest.fixture
def scan(pictures, tmp_path):
    """A PDF of three lines, none of which is another's size."""
    pages = [page.crop((0, 0, 200 + 50 * number, page.height)) for number, page in enumerate(pictures)]
    pages[0].save(tmp_path / "Scan.PDF", "PDF", save_all=True, append_images=pages[1:], resolution=150)
    return tmp_path / "Scan.PDF"


def drawn(path):
    """Pages as PDFium draws them at 150 DPI."""
    with pypdfium2.PdfDocument(path) as pdf:
        return [page.render(scale=150 / 72).to_pil().convert("RGB") for page in pdf]


def test_a_pdf_is_its_pages_in_order(command, exported, reader, scan, pictures):
    pictures[0].save(scan.parent / "line.png")
    arguments = "--model", exported("fp16"), "--temperature", 0, "--max-new-tokens", 20
    answer = generated(command, *arguments, "--image", scan, "--image", scan.parent / "line.png")
    pages = drawn(scan)
    assert len({page.size for page in pages}) == 3
    prompt = build_prompt(reader, "Read the text.", [*pages, pictures[0]])
    assert answer["prompt_tokens"] == len(prompt.ids)
    assert answer["tokens"] == list(generate(reader, prompt, greedy, 20))
    turned = build_prompt(reader, "Read the text.", [*reversed(pages), pictures[0]])
    assert answer["tokens"] != list(generate(reader, turned, greedy, 20))


def test_the_page_that_fills_the_context_is_named(command, copied, scan):
    """No page after it is drawn: a book would fill the memory before its prompt is counted."""
    tokens = math.prod(drawn(scan)[0].size) // 28**2
    set_context(copied, tokens + 8)
    result = command("generate", "--model", copied, "--image", scan)
    assert_one_line(
        result, f"{scan}: page 2: does not fit the model's context of {tokens + 8} tokens; give fewer images"
    )


def damaged(path):
    path.write_bytes(b"%PDF-1.4 and nothing more")


def empty(path):
    pypdfium2.PdfDocument.new().save(path)


def strip(path):
    pdf = pypdfium2.PdfDocument.new()
    pdf.new_page(200, 100)
    pdf.new_page(1, 500)
    pdf.save(path)


BAD_PDFS = {
    "missing": (lambda path: None, "scan.pdf: no such file"),
    "a folder": (lambda path: path.mkdir(), "scan.pdf: is a directory"),
    "damaged": (damaged, "scan.pdf: cannot be read as a PDF"),
    "without pages": (empty, "scan.pdf: cannot be read as a PDF"),
    "a strip": (strip, "scan.pdf: page 2: 3 x 1042 pixels, one side is more than 200 times the other"),
}


@pytest.mark.parametrize("case", BAD_PDFS)
def test_a_bad_pdf_is_named(case, command, exported, tmp_path):
    make, says = BAD_PDFS[case]
    make(tmp_path / "scan.pdf")
    assert_one_line(command("generate", "--model", exported("fp16"), "--image", tmp_path / "scan.pdf"), says)


WITHOUT = "import runpy, sys; sys.modules['pypdfium2'] = None; runpy.run_module('runtime', run_name='__main__')"


def test_without_pypdfium2_the_extra_is_named(exported, scan):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "generate", "--model", str(exported("fp16")), "--image", scan.name],
        cwd=scan.parent,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    says = "Scan.PDF: reading PDF files needs pypdfium2, install the extra 'data'"
    assert_one_line((done.returncode, done.stdout, done.stderr), says)


@pytest.fixture
def asked(pictures, tmp_path):
    """A file of questions in a folder of its own, and what `generate` is told for each of them alone."""
    folder = tmp_path / "asked"
    (folder / "pages").mkdir(parents=True)
    for number, page in enumerate(pictures):
        page.save(folder / "pages" / f"{number}.png")
    rows = [
        {"image": "pages/2.png", "prompt": "글을 읽으세요.", "answer": "of no use here"},
        {"image": "pages/0.png"},
        {"prompt": "Hello"},
        {"image": "pages/1.png", "prompt": "Read the text."},
        {"image": "pages/0.png", "prompt": None},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "questions.jsonl").write_text("\n".join([lines[0], "", *lines[1:]]) + "\n", encoding="utf-8")
    alone = [
        (
            *(["--image", folder / row["image"]] if "image" in row else []),
            *(["--prompt", row["prompt"]] if row.get("prompt") else []),
        )
        for row in rows
    ]
    return folder / "questions.jsonl", alone


NAMES = ["pages/2.png:1", "pages/0.png:3", "line/4", "pages/1.png:5", "pages/0.png:6"]
PROMPTS = ["글을 읽으세요.", "Read the text.", "Hello", "Read the text.", "Read the text."]


@pytest.mark.parametrize(
    "options",
    [
        (*NO_DRAFTS, "--temperature", 0),
        (*NO_DRAFTS, "--temperature", 1.5, "--seed", 3, "--thinking"),
        ("--draft-tokens", 4, "--temperature", 0, "--thinking", "--thinking-budget", 3),
        ("--draft-tokens", 2, "--seed", 1),
    ],
)
def test_every_line_is_answered_as_if_it_were_asked_alone(options, command, exported, asked, tmp_path):
    file, alone = asked
    shared = "--model", exported("fp16"), "--max-new-tokens", 20, *options
    code, out, err = command("generate", "--input", file, *shared)
    assert (code, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer.pop("name") for answer in answers] == NAMES
    assert [answer.pop("prompt") for answer in answers] == PROMPTS
    assert len({answer["load_seconds"] for answer in answers}) == 1
    for answer, arguments in zip(answers, alone, strict=True):
        expected = generated(command, *shared, *arguments)
        assert answer.keys() == expected.keys()
        assert all(answer[key] == expected[key] for key in expected.keys() - TIMES - COUNTS)


def test_each_answer_is_printed_when_it_is_ready(copied, asked):
    """A picture is removed when the first answer has come through a pipe; those before its line are still given.

    Its line is opened when two rounds of rows are answered after the first.
    """
    edit_json(copied / "generation_config.json", eos_token_id=0)  # padding, which no answer contains
    file, _ = asked
    lines = [{"prompt": "Hello"}] * 32 + [{"image": "pages/1.png"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = "--model", copied, "--input", "asked/questions.jsonl", "--temperature", 0, "--max-new-tokens", 120
    with subprocess.Popen(
        [sys.executable, "-m", "runtime", "generate", *map(str, arguments)],
        cwd=file.parent.parent,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert json.loads(running.stdout.readline())["name"] == "line/1"
        (file.parent / "pages" / "1.png").unlink()
        out, err = running.communicate(timeout=60)
    assert running.returncode == 2
    assert [json.loads(line)["name"] for line in out.splitlines()] == [f"line/{n}" for n in range(2, 33)]
    assert err.startswith("error: asked/questions.jsonl: line 33: asked/pages/1.png: no such file")
    assert err.count("\n") == 1


BAD_LINES = {
    "broken": ('{"image": ', "line 3 is not valid: Expecting value"),
    "a list": ("[1]", "line 3 is not valid: no object"),
    "nothing asked": ('{"answer": "12"}', "line 3 is not valid: it has neither an 'image' nor a 'prompt'"),
    "a number": ('{"prompt": 3}', "line 3 is not valid: 'prompt' is not text"),
    "empty": ('{"prompt": " ", "image": "a.png"}', "line 3 is not valid: 'prompt' is empty; write a question"),
    "half a character": ('{"prompt": "Wh \\ud83d?"}', "line 3 is not valid: ", "surrogates not allowed"),
    "no picture": ('{"image": "pages/none.png"}', "line 3: ", "pages/none.png: no such file"),
    "a strip": ('{"image": "strip.png"}', "line 3: strip.png:3: 3000 x 5 pixels"),
    "a place without a picture": ('{"prompt": "<|image_pad|>"}', "line 3: prompt: has 1 placeholders for 0 images"),
    "too long": (json.dumps({"prompt": "Read the text. " * 99}), "line 3: prompt: ", "context is 300; shorten it"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_before_weights_are_read(case, command, copied, tmp_path):
    set_context(copied, 300)
    (copied / "decoder.cpu.onnx").write_bytes(b"\x08\x0abroken" * 99)
    Image.new("L", (3000, 5)).save(tmp_path / "strip.png")
    Image.new("L", (56, 56)).save(tmp_path / "a.png")
    line, *says = BAD_LINES[case]
    file = tmp_path / "questions.jsonl"
    file.write_text(f'{{"prompt": "Hello"}}\n\n{line}\n{{"prompt": "Hello"}}\n')
    assert_one_line(command("generate", "--model", copied, "--input", file), f"error: {file}: {says[0]}", *says)


def test_bad_files_and_options_are_one_line(command, exported, asked, monkeypatch):
    folder = asked[0].parent
    monkeypatch.chdir(folder)
    (folder / "empty.jsonl").write_text("\n")
    (folder / "binary.jsonl").write_bytes('{"prompt": "합계"}'.encode("cp949"))
    cases = {
        ("nowhere.jsonl",): "nowhere.jsonl: no such file",
        ("pages",): "pages: cannot be read (Is a directory)",
        ("empty.jsonl",): "empty.jsonl: holds no questions",
        ("binary.jsonl",): "binary.jsonl: cannot be read ('utf-8' codec",
        ("questions.jsonl", "--prompt", "Hello"): "leave out --prompt, --image and --video",
        ("questions.jsonl", "--image", "pages/0.png"): "leave out --prompt, --image and --video",
        ("questions.jsonl", "--video", "pages"): "leave out --prompt, --image and --video",
        ("questions.jsonl", "--fps", "1"): "--fps 1.0: has no effect without a video",
        ("questions.jsonl", "--temperature", "-1"): "--temperature -1.0: must be 0",
    }
    for arguments, says in cases.items():
        assert_one_line(command("generate", "--model", exported("fp16"), "--input", *arguments), says)
