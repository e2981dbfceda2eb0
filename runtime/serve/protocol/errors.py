"""Errors as OpenAI's API shapes them. Clients get one line, never a traceback."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from console.errors import InputError, NoMemoryError
from console.text import shorten, shorten_message
from runtime.chat import TooLongError
from runtime.decoding.structured import GrammarError
from runtime.engine.thread import ClosedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

NO_RETRY = {"x-should-retry": "false"}
"""Header that keeps OpenAI's client from sending a request again that would fail again."""
TOO_LONG = "context_length_exceeded"
"""OpenAI's code of a prompt, or an answer that is asked for, that the context cannot hold."""
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_LONGEST_PARAM = 200
_FIELD = re.compile(r"[a-z_]+(\[\d+\])*(\.[a-z_]+(\[\d+\])*)*")
_TAKES_JSON = "send the body as application/json"


class RequestError(Exception):
    """A request that gets no answer: its HTTP status, and what the body of the error says."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, shorten_message(" ".join(message.split()))
        self.param, self.code = param and shorten(param, _LONGEST_PARAM), code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error as an object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def to_json(value: object) -> bytes:
    """Write JSON on one line. Half a surrogate pair, which a client may have sent, stays escaped."""
    written = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return written.encode(errors="backslashreplace")


def of_input(error: InputError, folder: Path) -> RequestError:
    """A request that cannot be answered, found before the engine has taken it. folder: the model's."""
    message = _without_path(error, folder)
    if isinstance(error, ClosedError):
        return RequestError(503, message)
    place, colon, _ = message.partition(": ")
    param = place if colon and _FIELD.fullmatch(place) else None  # such as "messages[0].content[1].image_url"
    code = TOO_LONG if isinstance(error, TooLongError) else None
    return RequestError(400, message, param="messages" if param == "prompt" else param, code=code)


def of_engine(error: InputError, folder: Path) -> RequestError:
    """An answer that the engine could not finish. folder: the model's."""
    message = _without_path(error, folder)
    if isinstance(error, ClosedError | NoMemoryError):
        return RequestError(503, message)
    return RequestError(400 if isinstance(error, GrammarError) else 500, message, headers=NO_RETRY)


def _without_path(error: InputError, folder: Path) -> str:
    """What is wrong; where the model's files are is for the server's owner only."""
    return re.sub(rf"^{re.escape(str(folder))}(/\S+)?: ", "the model: ", str(error))


def of_validation(errors: Sequence[Any], body: object) -> RequestError:
    """The innermost of pydantic's errors about a request. body: what was sent, as far as it is JSON."""
    # A union has one for each of its members, of which the member of another type says nothing.
    error = max(errors, key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "json_invalid":
        return RequestError(400, f"the body is not valid JSON: {context.get('error', error['msg'])}")
    place = list(error["loc"])
    if place[:1] in (["path"], ["query"]):
        return RequestError(400, f"{place[-1]}: {error['msg']}", param=str(place[-1]))
    if kind == "without_effect":  # found at the object that has the field
        param = _param([*place[1:], context["field"]], body)
        return RequestError(400, f"{param}: {error['msg']}", param=param, code="unsupported_parameter")
    param = _param(place[1:], body)
    if kind == "extra_forbidden":
        return RequestError(400, f"{param}: unknown parameter", param=param, code="unknown_parameter")
    if not param:
        return RequestError(400, f"the body is not what is expected ({error['msg']}); {_TAKES_JSON}")
    return RequestError(400, f"{param}: {error['msg'].removeprefix('Value error, ')}", param=param)


def _param(place: Sequence[str | int], value: object) -> str:
    """A field as Python would write it: messages[0].content.

    place: pydantic's, which also has names of union members. What the sent value does not have is one of these, unless
    it is the last: a missing field.
    """
    path = ""
    for number, part in enumerate(place):
        if isinstance(part, int) and isinstance(value, list) and part < len(value):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, dict) and (part in value or number == len(place) - 1):
            path, value = f"{path}.{part}", value.get(part)
    return path.removeprefix(".")
