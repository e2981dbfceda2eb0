"""Addresses at which Ray cannot be used."""

import os
import subprocess
import sys

import pytest

from console.errors import InputError
from runtime.batch.cluster import cluster

JOIN = """
from console.errors import InputError
from runtime.batch.cluster import cluster
try:
    with cluster("127.0.0.1:1"):
        print("joined")
except InputError as error:
    print(error)
"""


def test_the_address_of_rays_client_is_refused():
    """Ray Data does not run through it: its first row is an AttributeError."""
    address = "ray://127.0.0.1:10001"
    with pytest.raises(InputError, match=r"^--address ray://127\.0\.0\.1:10001: .*--address auto$"), cluster(address):
        pass


@pytest.mark.slow
def test_a_missing_token_is_an_input_error(tmp_path):
    """In a process of its own: Ray keeps the mode that it was imported with."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    ended = subprocess.run([sys.executable, "-c", JOIN], env=environment, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("Ray cannot be used at --address 127.0.0.1:1 (")
    assert "token" in ended.stdout
