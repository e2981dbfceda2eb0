"""Addresses at which Ray cannot be used."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from console.errors import InputError
from runtime.batch.cluster import _own_sigterm, cluster

JOIN = """
import sys
from console.errors import InputError
from runtime.batch.cluster import cluster
for address in sys.argv[1:]:
    try:
        with cluster(address):
            print("joined")
    except InputError as error:
        print(error)
"""

START = """
import signal
from runtime.batch.cluster import cluster
stopped = lambda number, frame: None
signal.signal(signal.SIGTERM, stopped)
with cluster(None):  # which drops what is printed
    kept = signal.getsignal(signal.SIGTERM) is stopped
print(kept, signal.getsignal(signal.SIGTERM) is stopped)
"""


def test_ray_leaves_our_handler_of_sigterm():
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=100, check=True)
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_a_sigterm_while_ray_starts_is_ours():
    """Ray sets handlers before it is ready, which would exit with 1 or 15 and say nothing."""

    class StoppedError(BaseException):
        pass

    def stopped(*_):
        raise StoppedError

    before = signal.signal(signal.SIGTERM, stopped)
    try:
        with pytest.raises(StoppedError), _own_sigterm():
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_address_of_rays_client_is_refused():
    """Ray Data does not run through it: its first row is an AttributeError."""
    address = "ray://127.0.0.1:10001"
    with pytest.raises(InputError, match=r"^--address ray://127\.0\.0\.1:10001: .*--address auto$"), cluster(address):
        pass


def test_a_node_that_does_not_start_is_an_input_error(monkeypatch):
    """As where TMPDIR is full: what Ray raises is no more than an Exception, after half a minute."""
    import ray

    def init(*_, **__):
        raise Exception("The current node timed out during startup.\nmore")

    monkeypatch.setattr(ray, "init", init)
    said = r"^Ray cannot be used on this machine \(The current node timed out during startup\.\)$"
    with pytest.raises(InputError, match=said), cluster(None):
        pass


def join(addresses, environment):
    """What is said where a process joins clusters, a line for each address.

    Not this process: Ray keeps the mode that it was imported with.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | environment
    arguments = [sys.executable, "-c", JOIN, *addresses]
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.slow
def test_an_address_without_a_cluster_is_said_at_once():
    """Ray itself tries for minutes."""
    addresses = "127.0.0.1:1", "127.0.0.1:x", "[::1]:1"
    start = time.monotonic()
    for address, said in zip(addresses, join(addresses, {}), strict=True):
        assert said.startswith(f"Ray cannot be used at --address {address} (")
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_a_missing_token_is_an_input_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (said,) = join([address], {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"})
    assert said.startswith(f"Ray cannot be used at --address {address} (")
    assert "token" in said
