"""A server as users start it: a process of its own, on a free port of 127.0.0.1."""

import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

from ..commands import ENVIRONMENT

CHAT = "/v1/chat/completions"


def answer_of(tokens):
    """A request whose answer has so many tokens; two or three take a hundredth of a second."""
    return {
        "messages": [{"role": "user", "content": "Write."}],
        "structured_outputs": {"regex": f"[ab]{{{tokens}}}"},
        "chat_template_kwargs": {"enable_thinking": False},
    }


LONG = answer_of(1500)  # some seconds


class Server:
    """A running server, and what it has written to stderr."""

    def __init__(self, folder, *options, environment=None, program=("-m", "runtime")):
        self.process = subprocess.Popen(
            [sys.executable, *program, "serve", "--model", str(folder), "--port", "0", *map(str, options)],
            env=ENVIRONMENT | (environment or {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = self.said("listening on ").split()[2].rstrip(",")
        self.port = int(self.url.rpartition(":")[2])

    def said(self, text, seconds=60):
        """Wait for a line with a text in it, and return it."""
        return until(lambda: next((line for line in self.log if text in line), None), seconds, self.log)

    def stop(self, seconds=60):
        """End as `docker stop` does. Returns the exit code."""
        self.process.terminate()
        return self.wait(seconds)

    def wait(self, seconds=60):
        code = self.process.wait(seconds)
        self._reader.join()
        self.process.stderr.close()
        return code

    def get(self, path, body=None, headers=None, method=None):
        """Status, headers and text of a response; body: an object or bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        for name, value in ({"content-type": "application/json"} | (headers or {})).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read().decode()

    def metric(self, name):
        """The value of a figure without labels."""
        lines = self.get("/metrics")[2].splitlines()
        return float(next(line for line in lines if line.startswith(name + " ")).split()[1])

    def idle(self, seconds=10):
        """Wait until nothing waits or runs."""
        busy = "exaone_answers_running", "exaone_answers_waiting"
        until(lambda: not any(map(self.metric, busy)), seconds, self.log)

    def _read(self):
        with contextlib.suppress(ValueError):
            for line in self.process.stderr:
                self.log.append(line.rstrip("\n"))


def until(found, seconds, log=()):
    """The first true value of `found()`."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, list(log)
        time.sleep(0.02)
    return value


@contextlib.contextmanager
def running(folder, *options, **named):
    """A server that is ready, and ends with the block."""
    server = Server(folder, *options, **named)
    try:
        server.said("ready: ")
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        if not server.process.stderr.closed:
            server.wait()


def error_of(response):
    """Status and error of a response, whose shape is checked."""
    status, headers, text = response
    assert headers["content-type"] == "application/json"
    content = json.loads(text)
    assert content.keys() == {"error"}
    assert content["error"].keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in text
    assert "\n" not in content["error"]["message"]
    return status, content["error"]
