"""How many workers there are, and what is said where they cannot be."""

import subprocess
import sys

import psutil
import pytest

SIZES = """
from dataclasses import replace
from console.errors import InputError
from runtime.batch.cluster import cluster
from runtime.batch.job import Job
from runtime.batch.pool import sized
from runtime.batch.source.folder import Folder
from runtime.batch.storage import Storage
job = Job(Storage("model"), Folder(Storage("scans"), None, False), Storage("out"))
said = []
with cluster(None):  # which drops what is printed
    for device, threads, workers, address in CASES:
        try:
            done, count = sized(replace(job, device=device, threads=threads), workers, address)
            said.append(f"{done.threads} {count}")
        except InputError as error:
            said.append(str(error))
print("\\n".join(said))
"""


@pytest.fixture(scope="module")
def said():
    """What `sized` says of each case, by a process of its own: Ray cannot be started twice in one."""
    done = subprocess.run(
        [sys.executable, "-c", f"CASES = {[*CASES]}\n{SIZES}"], capture_output=True, text=True, timeout=100, check=True
    )
    return dict(zip(CASES, done.stdout.splitlines(), strict=True))


CORES = len(psutil.Process().cpu_affinity())
CASES = {
    ("cpu", None, None, None): f"{CORES} 1",
    ("cpu", 1, None, None): f"1 {CORES}",
    ("cpu", 1, 1, None): "1 1",
    ("cpu", 1, 9999, None): (
        f"this machine has cores for {CORES} workers with --threads 1; give --workers {CORES} or fewer"
    ),
    ("cpu", 9999, None, None): "this machine has no 9999 cores for a worker; give fewer --threads",
    ("cuda", None, 9999, "auto"): "1 9999",
    ("cpu", 9999, None, "auto"): "--address auto: has no room for a worker now; give --workers N to wait for what it",
    (
        "cuda",
        9999,
        None,
        None,
    ): "this machine has no GPU with 9999 cores for a worker; give fewer --threads, or --device",
}


@pytest.mark.parametrize("case", CASES)
def test_workers_fill_the_devices(case, said):
    assert said[case].startswith(CASES[case])
