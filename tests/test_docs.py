"""What the documentation names exists: commands, options, Python names, links and files; its Python example runs."""

import ast
import importlib
import json
import pkgutil
import re
import shutil
from pathlib import Path

import pytest
import typer
import yaml

from calib_data import READER
from calib_data.sources import open_documents
from runtime.batch.output.columns import BASE, field_columns

ROOT = Path(__file__).parent.parent
PACKAGES = ("quantize", "export", "runtime", "calib_data", "console", "training", "bench")
PACKAGE = f"(?:{'|'.join(PACKAGES)})"
FOLDERS = (*PACKAGES, "tests", "docs", ".ci", ".github")
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/*.md"))),
    "bench/README.md",
    "calib_data/reader/README.md",
    "tests/data/README.md",
)


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def commands(text):
    """Module, the word after it, and options; up to the end of the line, of the code or of a comment."""
    found = re.findall(rf"python -m ({PACKAGE}\b[\w.]*)([^\n`#]*)", text)
    return [(module, (rest.split() or [""])[0], re.findall(r"(?<!\S)--[a-z-]+", rest)) for module, rest in found]


def options(module, word):
    """Options of a module's command, or of its command that `word` names."""
    try:
        app = importlib.import_module(f"{module}.__main__").app
    except ModuleNotFoundError as error:
        if error.name not in (module, f"{module}.__main__"):
            raise
        app = importlib.import_module(module).app
    command = typer.main.get_command(app)
    command = getattr(command, "commands", {}).get(word, command)
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def in_backticks(text):
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def anchors(page):
    """Anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "Makefile"])
def test_commands_and_options_exist(page):
    for module, word, given in commands(read(page)):
        assert set(given) <= options(module, word), (page, module, word)


def test_options_of_usage_are_those_of_the_commands():
    """The tables of usage.md list every option of their command, and no other."""
    usage = read("docs/usage.md")
    for heading, module, word in (
        ("Quantize a model", "quantize", ""),
        ("Export to ONNX", "export", ""),
        ("Ask about images, PDFs and videos", "runtime", "generate"),
        ("Score one folder", "runtime", "evaluate"),
        ("Compare with FP16", "runtime", "compare"),
    ):
        section = usage.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        listed = set(re.findall(r"^\| `(--[a-z-]+)` \|", section, re.MULTILINE))
        assert listed == options(module, word) - {"--help", "--no-thinking"}, heading


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"\w+://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), (page, target)
        assert not anchor or anchor in anchors(file.resolve().relative_to(ROOT.resolve())), (page, target)


@pytest.mark.parametrize("page", PAGES)
def test_files_in_backticks_exist(page):
    for word in in_backticks(read(page)):
        if re.fullmatch(r"[\w./-]+", word) and "/" in word and word.split("/")[0] in FOLDERS:
            assert (ROOT / word).exists(), (page, word)


@pytest.mark.parametrize("page", PAGES)
def test_python_names_in_backticks_exist(page):
    for word in in_backticks(read(page)):
        if re.fullmatch(rf"{PACKAGE}(\.\w+)+", word) and not word.endswith((".json", ".jsonl", ".npz")):
            pkgutil.resolve_name(word)


@pytest.mark.slow
def test_the_python_examples_run(tmp_path, monkeypatch, capsys):
    """README's and then usage's, on the reader, its documents and the CPU."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(READER, "exaone")
    Path("my-documents").mkdir()
    for place, document in enumerate(open_documents(split="evaluation", count=4, seed=0)):
        document.image.save(f"my-documents/{place}.png")
        Path(f"my-documents/{place}.txt").write_text(document.answer, encoding="utf-8")
    shutil.copy("my-documents/0.png", "invoice.png")
    shutil.copy("my-documents/1.png", "page.png")
    for page in ("README.md", "docs/usage.md"):
        (example,) = re.findall(r"```python\n(.*?)```", read(page), re.DOTALL)
        capsys.readouterr()
        exec(compile(ast.parse(example.replace('"cuda"', '"cpu"')), page, "exec"), {})
        assert capsys.readouterr().out.strip(), page


def test_the_columns_of_batch_are_those_that_it_writes():
    section = read("docs/batch.md").partition("| column | value |\n")[2].partition("\n\n")[0]
    listed = [name for line in section.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert listed == BASE.names
    (schema,) = re.findall(r"```json\n(.*?)```", read("docs/batch.md"), re.DOTALL)
    assert {column.name: str(column.type) for column in field_columns(json.loads(schema))} == {
        "number": "string",
        "total": "double",
    }


def test_ray_takes_the_clusters_of_batch():
    from ray.autoscaler._private.util import prepare_config, validate_config

    configs = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", read("docs/batch.md"), re.DOTALL)]
    assert [config["provider"]["type"] for config in configs] == ["aws", "local"]
    for config in configs:
        validate_config(prepare_config(config))


def test_the_readme_is_short():
    lines = read("README.md").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


def test_the_ci_example_compares_with_gates_and_keeps_the_report():
    text = re.search(r"```yaml\n(.*?)```", read("docs/ci.md"), re.DOTALL)[1]
    steps = yaml.safe_load(text)["jobs"]["compare"]["steps"]
    ran = [found for step in steps for found in commands(step.get("run", ""))]
    assert [module for module, _, _ in ran] == ["quantize", "quantize", "export", "export", "export", "runtime"]
    assert all(set(given) <= options(module, word) for module, word, given in ran)
    assert {"--max-drop-anls", "--max-kl", "--min-agreement", "--output", "--junit"} <= set(ran[-1][2])
    kept = steps[-1]
    assert (kept["if"], kept["with"]["path"].split()) == ("always()", ["report", "junit.xml"])


def test_ci_runs_what_must_hold_before_a_change_lands():
    steps = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["ci"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]
    assert [step["with"]["python-version"] for step in steps if "python-version" in step.get("with", {})] == ["3.11"]


def test_the_gpu_report_asks_for_the_gpu_the_driver_the_file_and_failures():
    form = yaml.safe_load(read(".github/ISSUE_TEMPLATE/gpu-report.yml"))
    required = [item["id"] for item in form["body"] if item.get("validations", {}).get("required")]
    assert {"gpu", "driver", "file", "failures"} <= set(required)
