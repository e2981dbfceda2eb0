"""What errors tell clients: the field, and nothing about the server's disk."""

from pathlib import Path

import pytest

from console.errors import InputError, NoMemoryError
from runtime.chat import TooLongError
from runtime.engine.thread import ClosedError
from runtime.serve.protocol.errors import of_engine, of_input

FOLDER = Path("/srv/models of us/exaone-w4")


@pytest.mark.parametrize(
    ("error", "message", "param", "code"),
    [
        (InputError("messages[0].content[12].file: page 3: x"), None, "messages[0].content[12].file", None),
        (InputError("prompt: x"), None, "messages", None),
        (TooLongError("prompt: 9 tokens"), None, "messages", "context_length_exceeded"),
        (InputError("--seed 3: x"), None, None, None),
        (InputError("/tmp/a.png: x"), None, None, None),
        (InputError(f"{FOLDER}: its template takes no tools"), "the model: its template takes no tools", None, None),
        (InputError(f"{FOLDER}/chat_template.jinja: x: y"), "the model: x: y", None, None),
    ],
)
def test_errors_about_a_request(error, message, param, code):
    found = of_input(error, FOLDER)
    assert (found.status, found.message) == (400, message or str(error))
    assert (found.param, found.code) == (param, code)


def test_a_folder_of_any_name_is_left_out():
    assert of_input(InputError("w4: words of 4"), Path("w4")).message == "the model: words of 4"
    assert of_input(InputError("a+b/c.json: x"), Path("a+b")).message == "the model: x"


def test_errors_of_the_engine():
    assert of_engine(InputError(f"{FOLDER}: gives NaN"), FOLDER).message == "the model: gives NaN"
    statuses = [of_engine(kind("x"), FOLDER).status for kind in (InputError, ClosedError, NoMemoryError)]
    assert statuses == [500, 503, 503]
    assert of_input(ClosedError("x"), FOLDER).status == 503
