"""Commands that the documentation and the Makefile give exist, with the options that they give."""

import re
from pathlib import Path

import pytest
import typer
import yaml

import export.__main__
import quantize.__main__
import runtime.__main__

ROOT = Path(__file__).parent.parent
APPS = {
    name: typer.main.get_command(module.app)
    for name, module in (("quantize", quantize.__main__), ("export", export.__main__), ("runtime", runtime.__main__))
}
FILES = ("README.md", "Makefile", "CHANGELOG.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")))


def options(app: str, word: str) -> set[str]:
    """Of the command, or of the one that the word after it names."""
    command = APPS[app]
    command = getattr(command, "commands", {}).get(word, command)
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def commands(text: str) -> list[tuple[str, str, list[str]]]:
    """Command, the word after it, and options; up to the end of the line, of the code or of a comment."""
    found = re.findall(r"python -m (quantize|export|runtime)\b([^\n`#]*)", text)
    return [(app, (rest.split() or [""])[0], re.findall(r"(?<!\S)--[a-z-]+", rest)) for app, rest in found]


@pytest.mark.parametrize("file", FILES)
def test_options_exist(file):
    for app, word, given in commands((ROOT / file).read_text(encoding="utf-8")):
        assert set(given) <= options(app, word), (file, app, word)


def test_the_ci_example_compares_with_gates_and_keeps_the_report():
    text = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    steps = yaml.safe_load(text)["jobs"]["compare"]["steps"]
    ran = [found for step in steps for found in commands(step.get("run", ""))]
    assert [app for app, _, _ in ran] == ["quantize", "quantize", "export", "export", "export", "runtime"]
    assert all(set(given) <= options(app, word) for app, word, given in ran)
    assert {"--max-drop-anls", "--max-kl", "--min-agreement", "--output", "--junit"} <= set(ran[-1][2])
    kept = steps[-1]
    assert (kept["if"], kept["with"]["path"].split()) == ("always()", ["report", "junit.xml"])
