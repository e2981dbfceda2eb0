"""Whole runs on Ray, with two worker processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from calib_data.rendered.render import documents
from runtime.model import Model

from ..commands import ENVIRONMENT

pytestmark = pytest.mark.slow
COUNT, PDF_PAGES = 96, 5
RAY = Path(sys.executable).with_name("ray")
ON_RAY = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Pillow plugins are found by import; this one ends the process, as a decoder with a fault does.
PLUGIN = """
import os
from PIL import Image, ImageFile
class Crash(ImageFile.ImageFile):
    format = "CRASH"
    def _open(self):
        os._exit(9)
Image.register_open("CRASH", Crash, lambda prefix: prefix.startswith(b"CRASH"))
"""
# Of the processes that open a model in a worker, all but the first are still at it when the first has answered all.
SLOW = """
import os, signal, sys
from pathlib import Path
if any(argument.endswith("default_worker.py") for argument in sys.orig_argv):
    import runtime.batch.workers.worker as worker
    class Slow(worker.Answering):
        def __init__(self, job):
            try:
                Path(__file__).with_name("first").mkdir()
            except FileExistsError:
                Path(job.output.url, "pages", f".000001.parquet.{'0' * 32}.partial").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGSTOP)  # as in C code, no handler of a signal runs
            super().__init__(job)
    worker.Answering = Slow
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages in two folders, some of them in a PDF, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "more").mkdir()
    drawn = [document.image for document in documents("evaluation", COUNT + PDF_PAGES, 3, "line")]
    for number, image in enumerate(drawn[:COUNT]):
        image.save(folder / ("more" if number % 2 else "") / f"{number:03}.png")
    first, *others = drawn[COUNT:]
    first.save(folder / "book.pdf", save_all=True, append_images=others)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def expected(pages, exported):
    """The text that `Model.ask` reads of each page."""
    model = Model(exported("fp16"), "cpu")
    files = sorted(path for path in pages.rglob("*.png") if path.name != "broken.png")
    texts = {(path.relative_to(pages).as_posix(), 1): model.ask("Read.", [path], draft_tokens=0).text for path in files}
    from calib_data.sources.pdf import draw_page

    for index in range(PDF_PAGES):
        image = draw_page(pages / "book.pdf", index)
        texts["book.pdf", index + 1] = model.ask("Read.", [image], draft_tokens=0).text
    return texts


class Cluster:
    """A cluster of Ray's on this machine, whose Pillow has PLUGIN."""

    def __init__(self, packages):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        host, _, port = self.address.partition(":")
        (packages / "sitecustomize.py").write_text(PLUGIN)
        listening = ["--node-ip-address", host, "--port", port, "--num-cpus", "2", "--include-dashboard", "false"]
        self.process = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--disable-usage-stats", *listening],
            env=ENVIRONMENT | ON_RAY | with_packages(packages),
            stdout=subprocess.DEVNULL,
        )
        wait_for(lambda: any(one.laddr.port == int(port) for one in psutil.net_connections() if one.status == "LISTEN"))

    def kill(self):
        """SIGTERM takes 30 seconds."""
        for process in (*psutil.Process(self.process.pid).children(recursive=True), self.process):
            process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """For runs that need no Ray of their own, which takes longest."""
    started = Cluster(tmp_path_factory.mktemp("packages"))
    yield started
    started.kill()


class Run:
    """`python -m runtime batch` as a process, in a cluster or with a Ray of its own."""

    def __init__(self, model, pages, output, *more, cluster=None, workers=2, environment=None):
        options = ["--model", model, "--input", pages, "--output", output, "--prompt", "Read."]
        options += ["--workers", workers, "--threads", 1, *more]
        if cluster is not None:
            options += ["--address", cluster.address]
        self._ray, self._before = cluster and cluster.process.pid, []
        self._before = self.workers() if cluster else []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "batch", *map(str, options)],
            env=ENVIRONMENT | (ON_RAY if cluster else {}) | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self):
        """Exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=150)
        return self.process.returncode, out, err

    def workers(self):
        """Processes of its workers that have begun to answer."""
        found = []
        for child in psutil.Process(self._ray or self.process.pid).children(recursive=True):
            try:
                if child.cmdline()[0].startswith("ray::MapWorker") and child not in self._before:
                    found.append(child)
            except (psutil.Error, IndexError):
                continue
        return found


def with_packages(folder):
    """The environment of processes that import from a folder too."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def rows_of(output):
    """Rows of all files by name; not of a hidden one, which a dying worker leaves half written."""
    files = sorted(Path(output, "pages").glob("[!.]*"))
    return [row for file in files for row in pq.ParquetFile(file).read(use_threads=False).to_pylist()]


def assert_once(output, expected, failed):
    """Every page is there once, in the order of the source, and has the expected text or error."""
    rows = rows_of(output)
    assert [row["row"] for row in rows] == list(range(len(expected) + len(failed)))
    assert {(row["document"], row["page"]): row["answer"] for row in rows if row["error"] is None} == expected
    errors = {row["document"]: row["error"] for row in rows if row["error"] is not None}
    assert errors.keys() == failed.keys()
    for name, text in failed.items():
        assert text in errors[name]
    assert [path.name for path in Path(output, "unfinished").iterdir()] == []
    return rows


def wait_for(found, seconds=60):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_page_that_kills_its_worker_and_pages_that_are_mended(pages, expected, exported, cluster, tmp_path):
    """It becomes a row with its error; the others are answered, and the counts tell what was begun again.

    When the pages with errors are mended, they alone are answered again.
    """
    scans, output = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(pages, scans)
    (scans / "killer.png").write_bytes(b"CRASH")
    code, out, err = Run(exported("fp16"), scans, output, "--json", cluster=cluster).end()
    assert code == 0, err
    deadly = "its worker died, or was stuck, 2 times"
    before = assert_once(output, expected, {"killer.png": deadly, "broken.png": "not an image"})
    summary, again = json.loads(out), sum(row["attempts"] > 1 for row in before)
    assert (summary["pages"], summary["answered"], summary["retried"]) == (len(before), len(expected), again)
    assert next(row["attempts"] for row in before if row["document"] == "killer.png") == 5
    assert "a worker has ended before its time; " in err

    for name, other in (("killer.png", "000.png"), ("broken.png", "002.png")):
        (scans / name).write_bytes((pages / other).read_bytes())
        expected = expected | {(name, 1): expected[other, 1]}
    options = exported("fp16"), scans, output, "--json", "--retry-errors"
    code, out, err = Run(*options, cluster=cluster, workers=1).end()
    assert code == 0, err
    done = f"{len(before) - 2} of {len(before)} pages are done"
    assert f"resuming: {done}, those with an error are answered again" in err
    assert "finished 2 pages" in err
    assert json.loads(out)["answered"] == len(before)
    for row, earlier in zip(assert_once(output, expected, {}), before, strict=True):
        if earlier["error"] is None:
            assert row == earlier
        else:
            assert row["attempts"] == earlier["attempts"] + 1


def test_a_worker_that_still_loads_its_model_at_the_end_leaves_nothing(exported, pages, tmp_path):
    """Nor does what was half written by one that was killed."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    scans, output = pages / "more", tmp_path / "out"
    code, _, err = Run(exported("fp16"), scans, output, environment=with_packages(tmp_path)).end()
    assert code == 0, err
    assert (tmp_path / "first").exists()
    assert len(rows_of(output)) == COUNT // 2
    assert [*(output / "unfinished").iterdir(), *output.rglob(".*")] == []


@pytest.fixture
def disk(tmp_path):
    """A folder on a small disk, and the function that makes it larger: None where that disk cannot be had."""
    folder = tmp_path / "out"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        yield folder, None
        return
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
    subprocess.run(["umount", folder], check=True)


def journals(output):
    """Changes when a shard is begun."""
    return {(path.name, path.stat().st_mtime_ns) for path in (output / "unfinished").glob("0*.json")}


def test_stopped_runs(pages, expected, exported, cluster, disk):
    """Whoever is stopped, by a full disk, Ctrl-C or SIGKILL, the same command goes on where the run was, on any Ray."""
    output, enlarge = disk
    options = exported("fp16"), pages, output
    if enlarge is not None:
        code, out, err = Run(*options, cluster=cluster, workers=1).end()
        assert (code, out) == (2, "")
        assert "cannot be written (No space left on device); what was finished is kept" in err.splitlines()[-1]
        enlarge()

    before = journals(output)
    first = Run(*options, workers=1)
    wait_for(lambda: journals(output) - before)
    first.process.send_signal(signal.SIGINT)
    code, out, err = first.end()
    assert (code, out) == (130, "")
    assert err.endswith("finished shards are kept; run the same command again to go on\ninterrupted\n")

    second = Run(*options, cluster=cluster, workers=1)
    wait_for(second.workers)
    workers = second.workers()
    second.process.kill()
    second.process.communicate()
    psutil.wait_procs(workers, 60)  # they may finish a shard: it counts

    third = Run(*options, cluster=cluster)
    wait_for(third.workers)
    third.workers()[0].kill()
    code, _, err = third.end()
    assert code == 0, err
    rows = assert_once(output, expected, {"broken.png": "not an image"})
    assert any(row["attempts"] > 1 for row in rows)
    code, out, err = Run(*options, "--json").end()
    assert (code, err) == (0, "nothing is left to answer: all rows are written\n")
    assert json.loads(out)["pages"] == len(rows)
    if enlarge is None:
        pytest.skip("all but the full disk passed: only root may mount a small one")
