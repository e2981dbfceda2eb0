"""How a server starts and how it ends: real processes, real signals."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ..commands import ENVIRONMENT, assert_one_line
from .server import CHAT, LONG, Server, answer_of, error_of, running, until

BODY = {"messages": [{"role": "user", "content": "Read the text."}], "max_tokens": 4}
START = "import runpy, sys, time\n{fault}\nrunpy.run_module('runtime', run_name='__main__', alter_sys=True)"
SLOW_TO_LOAD = """
from runtime.serve.service import Service
load = Service.load
Service.load = lambda self: (time.sleep(2), load(self))
"""
ALWAYS_LOADS = """
from runtime.serve.service import Service
def load(self):
    while True:
        self.model.open_sessions()
        self.model.unload()
Service.load = load
"""
DIES = """
from runtime.engine.engine import Engine
turn = Engine.turn
def fail(self):
    if self.running:
        raise RuntimeError("the engine's fault")
    return turn(self)
Engine.turn = fail
"""


QUICK = """
from runtime.serve.middleware.head_limit import TimedProtocol
TimedProtocol.head_seconds = 0.5
"""
STUCK = """
from runtime.serve.chat import completions
prepare = completions.engine_requests
def stuck(service, body):
    if body.max_tokens == 1:
        time.sleep(60)
    return prepare(service, body)
completions.engine_requests = stuck
"""


def asking(server, body):
    """A request in a thread, and the list that its response comes into."""
    responses = []
    thread = threading.Thread(target=lambda: responses.append(server.get(CHAT, body)))
    thread.start()
    return thread, responses


def test_health_says_when_the_model_is_loaded(exported):
    program = "-c", START.format(fault=SLOW_TO_LOAD)
    server = Server(exported("fp16"), "--max-context", 128, program=program)
    assert server.get("/health")[::2] == (503, '{"status":"loading"}')
    status, error = error_of(server.get(CHAT, BODY))
    assert (status, error["type"]) == (503, "server_error")
    assert server.get("/v1/models")[0] == 200
    server.said("ready: ")
    assert server.get("/health")[0] == server.get(CHAT, BODY)[0] == 200
    assert server.stop() == 0


def test_sigterm_while_loading_ends_at_once(exported):
    server = Server(exported("fp16"), program=("-c", START.format(fault=SLOW_TO_LOAD.replace("2", "60"))))
    server.get("/health")
    assert server.stop(10) == 0


def test_sigterm_inside_native_code_that_loads_is_no_crash(exported):
    """Where Python ends such a thread, C++ ends the process with SIGABRT."""
    server = Server(exported("fp16"), program=("-c", START.format(fault=ALWAYS_LOADS)))
    server.get("/health")
    time.sleep(1)
    assert server.stop(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_runs_and_refuses_the_rest(exported, number):
    with running(exported("fp16"), "--max-context", 2048) as server:
        thread, responses = asking(server, answer_of(1200))
        until(lambda: server.metric("exaone_answers_running") == 1, 10)
        server.process.send_signal(number)
        server.said("stopping")
        assert server.get("/health")[::2] == (503, '{"status":"stopping"}')
        assert error_of(server.get(CHAT, BODY))[0] == 503
        assert server.wait() == 0
        thread.join()
    ((status, _, text),) = responses
    assert status == 200
    assert len(json.loads(text)["choices"][0]["message"]["content"]) == 1200


def test_what_is_not_finished_in_time_is_told_so(exported):
    options = "--max-context", 2048, "--drain-seconds", 0.2
    with running(exported("fp16"), *options) as server:
        asked = [asking(server, LONG | {"stream": stream}) for stream in (False, True)]
        until(lambda: server.metric("exaone_answers_running") == 2, 10)
        assert server.stop() == 143
        for thread, _ in asked:
            thread.join()
    ((status, _, text),), ((stream_status, _, streamed),) = (responses for _, responses in asked)
    assert status == 503
    assert (stream_status, streamed.count("event: error\n")) == (200, 1)
    assert streamed.endswith("data: [DONE]\n\n")
    assert "the server is stopping" in text
    assert "the server is stopping" in streamed


def test_a_second_signal_does_not_wait(exported):
    with running(exported("fp16"), "--max-context", 2048) as server:
        thread, _ = asking(server, LONG)
        until(lambda: server.metric("exaone_answers_running") == 1, 10)
        server.process.send_signal(signal.SIGTERM)
        server.said("stopping")
        assert server.stop(3) == 143
        thread.join()


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_engine_ends_the_process(exported, stream):
    program = "-c", START.format(fault=DIES)
    with running(exported("fp16"), "--max-context", 128, program=program) as server:
        status, _, text = server.get(CHAT, BODY | {"stream": stream})
        assert status == (200 if stream else 503)
        assert "the engine has stopped" in text
        assert "fault" not in text
        assert server.wait() == 1
        assert any("the engine's fault" in line for line in server.log)


def test_a_request_whose_head_does_not_come_is_closed(exported):
    """Each would hold a socket for ever, and the process has a thousand."""
    with running(exported("fp16"), "--max-context", 2048, program=("-c", START.format(fault=QUICK))) as server:
        whole = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
        for before, begin in ((b"", b""), (b"", whole[:-2]), (whole, whole[:3])):
            with socket.create_connection(("127.0.0.1", server.port), timeout=4) as connection:
                if before:
                    connection.sendall(before)
                    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
                connection.sendall(begin)
                assert b"HTTP" not in b"".join(iter(lambda connection=connection: connection.recv(1 << 16), b""))
        answer = json.loads(server.get(CHAT, answer_of(600))[2])  # takes longer
        assert len(answer["choices"][0]["message"]["content"]) == 600


def test_work_that_is_stuck_keeps_neither_a_place_nor_the_process(exported):
    """As a page that takes minutes to draw: whoever leaves the queue behind it leaves nothing."""
    with running(exported("fp16"), "--max-context", 128, program=("-c", START.format(fault=STUCK))) as server:
        data = json.dumps(BODY | {"max_tokens": 1}).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        for _ in range(12):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head.encode() + data)
                until(lambda: server.metric("exaone_answers_waiting") == 1, 10)
            server.idle(seconds=2)
        assert server.stop(10) == 0


def test_kill_and_restart_on_the_same_port(exported):
    with running(exported("fp16"), "--max-context", 128) as server:
        server.get(CHAT, BODY)
        server.process.kill()
        server.wait()
    with running(exported("fp16"), "--max-context", 128, "--port", server.port) as again:
        assert again.port == server.port
        assert again.get(CHAT, BODY)[0] == 200


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "256.1.1.1"], "--host 256.1.1.1"),
        (["--allow-media-domains", "http://a/b"], "http://a/b"),
        (["--model", "nothing"], "nothing"),
        (["--memory-limit", "4"], "--memory-limit"),
    ],
)
def test_what_cannot_be_served_is_one_line(command, exported, options, says):
    assert_one_line(command("serve", "--model", exported("fp16"), "--port", 0, *options), says)


def test_what_does_not_fit_is_one_line_below_the_address(exported):
    code, lines = serve(exported, "--max-context", "999999999")
    assert code == 2
    listening, error = lines
    assert listening.startswith("listening on ")
    assert error.startswith("error: --max-context 999999999")


def test_a_port_that_is_taken_is_one_line(exported):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines = serve(exported, "--port", port)
    assert_one_line((code, "", "\n".join([*lines, ""])), f"--port {port}", "in use")


def serve(exported, *options):
    """Exit code and stderr of a server that does not start."""
    command = [sys.executable, "-m", "runtime", "serve", "--model", exported("fp16"), "--port", "0", *map(str, options)]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stderr.splitlines()
