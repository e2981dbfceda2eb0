"""Whole runs on Ray, with two worker processes."""

import json
import os
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
COUNT, PDF_PAGES = 200, 5
RAY = Path(sys.executable).with_name("ray")
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


class Run:
    """`python -m runtime batch` as a process."""

    def __init__(self, model, pages, output, *more, environment=None):
        options = ["--model", model, "--input", pages, "--output", output, "--prompt", "Read."]
        options += ["--workers", 2, "--threads", 1, *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "batch", *map(str, options)],
            env=ENVIRONMENT | (environment or {}),
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
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if child.cmdline()[0].startswith("ray::MapWorker"):
                    found.append(child)
            except (psutil.Error, IndexError):
                continue
        return found


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


def test_page_that_kills_its_worker(pages, expected, exported, tmp_path):
    """It becomes a row with its error; the others are answered, and the counts tell what was begun again."""
    killer = pages / "killer.png"
    (tmp_path / "sitecustomize.py").write_text(PLUGIN)
    killer.write_bytes(b"CRASH")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    try:
        run = Run(exported("fp16"), pages, tmp_path / "out", "--json", environment={"PYTHONPATH": path})
        code, out, err = run.end()
    finally:
        killer.unlink()
    assert code == 0, err
    rows = assert_once(
        tmp_path / "out",
        expected,
        {"killer.png": "its worker died, or was stuck, 2 times", "broken.png": "not an image"},
    )
    summary, again = json.loads(out), sum(row["attempts"] > 1 for row in rows)
    assert (summary["pages"], summary["answered"], summary["retried"]) == (len(rows), len(expected), again)
    assert next(row["attempts"] for row in rows if row["document"] == "killer.png") == 5
    assert "a worker has ended before its time; " in err


def test_a_worker_that_still_loads_its_model_at_the_end_leaves_nothing(exported, pages, tmp_path):
    """Nor does what was half written by one that was killed."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    scans, output = pages / "more", tmp_path / "out"
    code, _, err = Run(exported("fp16"), scans, output, environment={"PYTHONPATH": path}).end()
    assert code == 0, err
    assert (tmp_path / "first").exists()
    assert len(rows_of(output)) == COUNT // 2
    assert [*(output / "unfinished").iterdir(), *output.rglob(".*")] == []


def test_stopped_runs(pages, expected, exported, tmp_path):
    """Whoever is stopped, by Ctrl-C or by SIGKILL, the same command goes on where the run was."""
    output = tmp_path / "out"
    first = Run(exported("fp16"), pages, output)
    wait_for(lambda: any((output / "unfinished").glob("0*.json")))
    first.process.send_signal(signal.SIGINT)
    code, out, err = first.end()
    assert (code, out) == (130, "")
    assert err.endswith("finished shards are kept; run the same command again to go on\ninterrupted\n")
    second = Run(exported("fp16"), pages, output)
    wait_for(second.workers)
    second.process.kill()
    second.process.communicate()
    time.sleep(3)  # its workers may finish a shard: it counts
    third = Run(exported("fp16"), pages, output)
    wait_for(third.workers)
    third.workers()[0].kill()
    code, _, err = third.end()
    assert code == 0, err
    rows = assert_once(output, expected, {"broken.png": "not an image"})
    assert any(row["attempts"] > 1 for row in rows)
    code, out, err = Run(exported("fp16"), pages, output, "--json").end()
    assert (code, err) == (0, "nothing is left to answer: all rows are written\n")
    assert json.loads(out)["pages"] == len(rows)


def test_a_cluster_and_errors_that_are_answered_again(pages, exported, tmp_path):
    """Pages that are mended since. A run joins the cluster at its address, and leaves it as it was."""
    scans, output = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for name in ("000.png", "002.png"):
        (scans / name).write_bytes((pages / name).read_bytes())
    (scans / "001.png").write_bytes(b"no picture")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, _, port = address.partition(":")
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    listening = ["--node-ip-address", host, "--port", port, "--num-cpus", "2", "--include-dashboard", "false"]
    started = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--disable-usage-stats", *listening],
        env=ENVIRONMENT | environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: any(one.laddr.port == int(port) for one in psutil.net_connections() if one.status == "LISTEN"))
        options = exported("fp16"), scans, output, "--json", "--address", address
        code, out, err = Run(*options, environment=environment).end()
        assert code == 0, err
        assert [(row["page"], row["error"] is None) for row in rows_of(output)] == [(1, True), (1, False), (1, True)]
        before = rows_of(output)
        (scans / "001.png").write_bytes((pages / "004.png").read_bytes())
        code, out, err = Run(*options, "--retry-errors", environment=environment).end()
        assert code == 0, err
        assert "resuming: 2 of 3 pages are done, those with an error are answered again" in err
        assert "finished 1 pages; answers are in " in err
        assert json.loads(out)["answered"] == 3
        after = rows_of(output)
        assert [after[0], after[2]] == [before[0], before[2]]
        assert (after[1]["error"], after[1]["attempts"]) == (None, 2)
    finally:
        for process in (*psutil.Process(started.pid).children(recursive=True), started):  # SIGTERM takes 30 seconds
            process.kill()
        started.wait()


def test_full_disk(pages, expected, exported, tmp_path):
    """One line says so; with more space, the same command ends the run."""
    output = tmp_path / "out"
    output.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", output], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        code, out, err = Run(exported("fp16"), pages, output).end()
        assert (code, out) == (2, "")
        assert "cannot be written (No space left on device); what was finished is kept" in err.splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,size=100m", output], check=True)
        code, _, err = Run(exported("fp16"), pages, output).end()
        assert code == 0, err
        assert_once(output, expected, {"broken.png": "not an image"})
    finally:
        subprocess.run(["umount", output], check=True)
