"""Routes and errors over plain HTTP."""

import contextlib
import json
import re
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from bench.demo import answer, ask_about
from calib_data.sources import open_documents

from .server import CHAT, LONG, error_of, running, until

ROOT = Path(__file__).parents[3]
BODY = {"messages": [{"role": "user", "content": "Read the text."}], "max_tokens": 4}
SSE_END = "data: [DONE]\n\n"


def head(*headers):
    """The begin of a chat request."""
    lines = [f"POST {CHAT} HTTP/1.1", "host: x", "content-type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def connect(server, body):
    """A raw connection that has sent a chat request."""
    data = json.dumps(body).encode()
    connection = socket.socket()
    connection.settimeout(30)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # else the system holds megabytes
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(head(f"content-length: {len(data)}") + data)
    return connection


def test_state(server):
    assert server.get("/health")[::2] == (200, '{"status":"ok"}')
    assert json.loads(server.get("/version")[2]).keys() == {"version"}
    document = json.loads(server.get("/openapi.json")[2])
    assert {CHAT, "/v1/models", "/health", "/metrics", "/tokenize", "/version"} <= document["paths"].keys()


def test_the_page_of_parameters_needs_no_network(server):
    status, headers, page = server.get("/docs")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "//" not in page.replace("<!doctype", "")
    for name in ("thinking_token_budget", "max_completion_tokens", "response_format", "image_url"):
        assert f"<code>{name}</code>" in page


@pytest.mark.parametrize(
    ("path", "body", "method", "status", "param"),
    [
        ("/v1/nothing", None, "GET", 404, None),
        ("/v1/models/other", None, "GET", 404, "model"),
        (CHAT, None, "GET", 405, None),
        ("/v1/models", {}, "POST", 405, None),
        (CHAT, b"", "POST", 400, None),
        (CHAT, b"{", "POST", 400, None),
        (CHAT, b"[]", "POST", 400, None),
        (CHAT, b"\xff\xfe", "POST", 400, None),
        (CHAT, b"[" * 100_000, "POST", 400, None),
        (CHAT, b'{"messages": 1e999}', "POST", 400, "messages"),
        (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "POST", 400, "messages[0].content"),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "POST", 400, "temperature"),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "\\ud800": 1}', "POST", 400, None),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}", "POST", 400, None),
        (CHAT, BODY | {"structured_outputs": {"regex": "a{1000000}"}, "thinking_token_budget": 0}, "POST", 400, None),
        ("/tokenize", {}, "POST", 400, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": BODY["messages"]}, "POST", 400, "prompt"),
        ("/tokenize", {"prompt": "x" * 20_000_000}, "POST", 400, "prompt"),
        ("/tokenize", {"prompt": "x", "add_special_tokens": True}, "POST", 400, "add_special_tokens"),
    ],
)
def test_errors_have_openais_shape(server, path, body, method, status, param):
    found, error = error_of(server.get(path, body, method=method))
    assert (found, error["param"]) == (status, param)
    assert error["type"] == "invalid_request_error"


def test_a_body_of_another_type_is_refused(server):
    """So no page of another origin can send it without asking."""
    status, error = error_of(server.get(CHAT, BODY, {"content-type": "text/plain"}))
    assert status == 400
    assert "application/json" in error["message"]


def test_tokenize(server, reader):
    text = server.get("/tokenize", {"prompt": "Read the text."})[2]
    tokens = reader.chat.encode_text("Read the text.")
    assert json.loads(text) == {"count": len(tokens), "max_model_len": 2048, "tokens": tokens, "token_strs": None}
    for thinking in (None, True, False):
        options = {"chat_template_kwargs": {"enable_thinking": thinking}}
        text = server.get("/tokenize", {"messages": BODY["messages"]} | options)[2]
        expected = reader.chat.encode("Read the text.", thinking=thinking is not False).tolist()
        assert json.loads(text)["tokens"] == expected


def test_an_answer_alone_has_drafts(exported, server):
    """A number is kept to; more answers at the same time get the same text."""
    body = {"messages": [{"role": "user", "content": "Read the text."}], "temperature": 0, "max_tokens": 40}
    with running(exported("fp16"), "--max-rows", 2, "--max-context", 512, "--draft-tokens", 3) as drafting:
        text = json.loads(drafting.get(CHAT, body)[2])["choices"][0]["message"]
        drafted, accepted = (drafting.metric(f"exaone_{name}draft_tokens_total") for name in ("", "accepted_"))
        both = json.loads(drafting.get(CHAT, body | {"n": 2})[2])["choices"]
    assert 0 <= accepted <= drafted
    assert drafted > 10
    assert [choice["message"] for choice in both] == [text, text]
    assert json.loads(server.get(CHAT, body)[2])["choices"][0]["message"] == text


def test_figures(server):
    server.get(CHAT, BODY)
    before = {name: server.metric(name) for name in ("exaone_completion_tokens_total", "exaone_prompt_tokens_total")}
    assert json.loads(server.get(CHAT, BODY)[2])["usage"]["completion_tokens"] == 4
    assert server.metric("exaone_completion_tokens_total") == before["exaone_completion_tokens_total"] + 4
    assert server.metric("exaone_prompt_tokens_total") == before["exaone_prompt_tokens_total"] + 22
    assert server.metric("exaone_cached_prompt_tokens_total") > 0
    assert server.metric("exaone_time_to_first_token_seconds_count") > 1


def test_pictures_are_counted(server, tmp_path):
    """The same image after another text: the row's tokens are of no use, its embeddings are."""
    (document,) = open_documents(split="evaluation", count=1, seed=9, kind="line")
    document.image.save(tmp_path / "page.png")
    names = "exaone_pictures_encoded_total", "exaone_pictures_kept_total"
    before = [server.metric(name) for name in names]
    for text in ("One way:", "Another:"):
        body = json.loads(ask_about(tmp_path / "page.png", document.prompt)) | {"max_tokens": 2}
        body["messages"][0]["content"].insert(0, {"type": "text", "text": text})
        assert server.get(CHAT, body)[0] == 200
    assert [server.metric(name) for name in names] == [before[0] + 1, before[1] + 1]


def test_the_log_has_a_line_for_each_request_and_no_prompt(server):
    body = BODY | {"messages": [{"role": "user", "content": "A secret"}]}
    server.get(CHAT, body)
    line = server.said(f"POST {CHAT} 200")
    assert line.endswith(" tokens")
    assert not any("secret" in line for line in server.log)


def test_an_endless_body_is_refused_and_not_held(server):
    """1 GB, sent in pieces without a length."""
    memory = resident(server)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head("transfer-encoding: chunked"))
        piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        for _ in range(1024):
            connection.sendall(piece)
        connection.sendall(b"0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"the body is larger than 64 MiB"' in answer
    assert resident(server) - memory < 200 << 20


def test_a_body_that_says_that_it_is_too_large_is_refused_before_it_is_sent(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head("expect: 100-continue", f"content-length: {1 << 30}"))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("value", [b"[],", b"0,", b'{"":0},', b"[" * 500 + b"]" * 500 + b","])
def test_a_body_of_too_many_values_is_refused(server, value):
    """As objects, the largest body that is read would take gigabytes."""
    data = b'{"messages": [' + value * (2_000_000 // len(value)) + b"0]}"
    status, error = error_of(server.get(CHAT, data))
    assert (status, error["message"]) == (413, "the body is larger than 500000 JSON values")


def resident(server):
    """Bytes of memory of the server."""
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_row(server, stream):
    server.idle()
    with connect(server, LONG | {"stream": stream}) as connection:
        until(lambda: server.metric("exaone_answers_running") == 1, 10)
        if stream:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
    server.idle(seconds=1)  # of four that the answer would take
    assert server.said(f"POST {CHAT} 499")


def test_a_client_that_goes_away_while_its_images_are_opened_leaves_nothing(server):
    for _ in range(20):
        connect(server, LONG).close()
    server.idle(seconds=3)


def test_a_slow_reader_stalls_nobody(server):
    """Its answers wait in the server; others are answered in the meantime."""
    server.idle()
    body = LONG | {"stream": True, "n": 3, "logprobs": True, "top_logprobs": 20}  # more than buffers of the system hold
    with connect(server, body) as connection:
        until(lambda: server.metric("exaone_answers_running") == 3, 10)
        assert server.get(CHAT, BODY)[0] == 200
        until(lambda: server.metric("exaone_answers_running") == 0, 30)
        received = b""
        while not received.endswith(SSE_END.encode() + b"\r\n0\r\n\r\n"):
            received += connection.recv(1 << 16)
    events = [line for line in received.decode().splitlines() if line.startswith("data: {")]
    deltas = [json.loads(line[6:])["choices"][0] for line in events]
    assert len("".join(delta["delta"].get("content", "") for delta in deltas)) == 4500
    assert sum(len(delta["logprobs"]["content"]) for delta in deltas if delta["logprobs"]) >= 4500
    server.idle()


@pytest.fixture(scope="module")
def impatient(exported):
    """A server that gives a second to a request."""
    with running(exported("fp16"), "--max-request-seconds", 1, "--max-context", 2048) as server:
        yield server
        assert server.stop() == 0


def test_a_reader_that_stops_reading_is_left_at_the_time_limit(impatient):
    before = len(impatient.log)
    with connect(impatient, LONG | {"stream": True, "n": 3, "logprobs": True, "top_logprobs": 20}) as connection:
        connection.recv(100)
        until(lambda: any(f"POST {CHAT} " in line for line in impatient.log[before:]), 10)
    impatient.idle(seconds=1)


def test_pipelined_requests_are_answered_in_order(server):
    data = json.dumps(BODY).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall((head(f"content-length: {len(data)}") + data) * 2)
        received = b""
        while received.count(b'"finish_reason"') < 2:
            received += connection.recv(1 << 16)
    assert received.count(b"HTTP/1.1 200 OK") == 2


KEY = "sésame"
RIGHT = {"authorization": f"Bearer {KEY}".encode().decode("latin-1")}


@pytest.fixture(scope="module")
def locked(exported):
    """A server with an API key, for one other origin, that logs prompts."""
    options = "--allow-origin", "http://a.example", "--log-prompts", "--max-context", 128, "--served-model-name", "mine"
    with running(exported("fp16"), *options, environment={"EXAONE_DOCVLM_API_KEY": KEY}) as server:
        yield server


def test_an_api_key_is_asked_for(locked):
    for path in ("/v1/models", CHAT, "/tokenize", "/metrics"):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sésame"}):
            status, error = error_of(locked.get(path, headers=headers))
            assert (status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
    assert json.loads(locked.get("/v1/models", headers=RIGHT)[2])["data"][0]["id"] == "mine"
    assert locked.get("/health")[0] == locked.get("/docs")[0] == 200
    assert not any(KEY in line for line in locked.log)


def test_other_origins_are_allowed_only_where_named(server, locked):
    asks = {"origin": "http://a.example", "access-control-request-method": "POST"}
    assert server.get(CHAT, headers=asks, method="OPTIONS")[0] == 405
    assert "access-control-allow-origin" not in server.get("/v1/models", headers=asks)[1]
    status, headers, _ = locked.get(CHAT, headers=asks, method="OPTIONS")
    assert (status, headers["access-control-allow-origin"]) == (200, "http://a.example")
    assert locked.get(CHAT, headers=asks | {"origin": "http://b.example"}, method="OPTIONS")[0] == 400
    locked.get(CHAT, BODY, RIGHT)
    assert "Read the text." in locked.said("prompt: ")


def test_too_many_requests_are_told_to_come_back(exported):
    with running(exported("fp16"), "--max-rows", 1, "--max-queue", 1, "--max-context", 2048) as server:
        with contextlib.ExitStack() as waiting:
            for _ in range(2):
                waiting.enter_context(connect(server, LONG))
            until(lambda: server.metric("exaone_answers_waiting") == 1, 10)
            response = server.get(CHAT, BODY)
            status, error = error_of(response)
            assert (status, error["type"]) == (429, "rate_limit_error")
            assert 1 <= int(response[1]["retry-after"]) <= 60
            assert error_of(server.get(CHAT, BODY | {"n": 3}))[0] == 400  # never
        server.idle(seconds=2)
        assert server.get(CHAT, BODY)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_ended(impatient, stream):
    response = impatient.get(CHAT, LONG | {"stream": stream})
    if stream:
        assert response[0] == 200
        assert response[2].endswith(SSE_END)
        event = response[2].split("\n\n")[-3]
        assert event.startswith("event: error\ndata: ")
        assert json.loads(event.splitlines()[1][6:])["error"]["code"] == "timeout"
    else:
        status, error = error_of(response)
        assert (status, error["code"], response[1]["x-should-retry"]) == (504, "timeout", "false")
    impatient.idle(seconds=1)


def test_the_curl_command_of_the_readme_gets_the_model_s_answer(server, reader, tmp_path):
    (document,) = open_documents(split="evaluation", count=1, seed=0, kind="line")
    document.image.save(tmp_path / "page.png")
    request = tmp_path / "request.json"
    request.write_text(ask_about(tmp_path / "page.png", document.prompt), encoding="utf-8")
    (command,) = re.findall(r"^    (curl .*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    command = command.replace("http://127.0.0.1:8000", server.url).replace("demo/request.json", str(request))
    said = json.loads(subprocess.run(shlex.split(command), capture_output=True, check=True).stdout)
    assert said["choices"][0]["message"]["content"] == answer(reader, document)
