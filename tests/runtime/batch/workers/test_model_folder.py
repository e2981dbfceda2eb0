"""The model's folder on this machine: a local one as it is, one at a URL copied once."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from console.errors import InputError
from runtime.batch.storage import Storage
from runtime.batch.workers.model_folder import CACHE, local_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def remote(tmp_path) -> Storage:
    storage = Storage(f"memory://{tmp_path}/model")
    for name in ("runtime.json", "decoder.cpu.onnx", "parts/a/weights.bin"):
        storage.write(name, name.encode())
    return storage


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_local_folder_is_not_copied(cache, tmp_path):
    assert local_model(Storage.at(tmp_path)) == tmp_path
    assert not cache.exists()


def test_all_workers_of_a_machine_share_one_copy(cache, remote):
    with ThreadPoolExecutor(4) as workers:
        folders = list(workers.map(lambda _: local_model(Storage(remote.url)), range(8)))
    assert len(set(folders)) == 1
    assert content(folders[0]) == {name: name for name in ("runtime.json", "decoder.cpu.onnx", "parts/a/weights.bin")}
    assert [path for path in cache.glob("*/*") if path.is_dir()] == [folders[0]]


def test_a_copy_is_made_once_and_again_when_the_manifest_has_changed(cache, remote):
    first = local_model(remote)
    remote.write("decoder.cpu.onnx", b"new")
    assert local_model(remote) == first
    assert content(first)["decoder.cpu.onnx"] == "decoder.cpu.onnx"
    remote.write("runtime.json", b"new")
    second = local_model(remote)
    assert second != first
    assert (content(second)["runtime.json"], content(second)["decoder.cpu.onnx"]) == ("new", "new")


def test_what_a_killed_copy_left_is_no_model(cache, remote):
    folder = local_model(remote)
    folder.rename(folder.with_suffix(".partial"))
    (folder.with_suffix(".partial") / "decoder.cpu.onnx").write_text("half")
    (folder.with_suffix(".partial") / "stale.onnx").write_text("of nothing")
    assert local_model(remote) == folder
    assert content(folder) == {name: name for name in ("runtime.json", "decoder.cpu.onnx", "parts/a/weights.bin")}


def test_a_url_without_a_manifest_is_no_model(cache, tmp_path):
    url = f"memory://{tmp_path}/none"
    with pytest.raises(InputError) as caught:
        local_model(Storage(url))
    assert str(caught.value) == f"{url}: has no runtime.json; give a model folder that export has added graphs to"
    assert not cache.exists()


USING = """
import sys
from runtime.batch.storage import Storage
from runtime.batch.workers.model_folder import local_model
storage = Storage("memory://" + sys.argv[1])
for name in ("runtime.json", "decoder.onnx"):
    storage.write(name, sys.argv[2].encode())
print(local_model(storage), flush=True)
sys.stdin.read()
"""


def test_old_copies_are_deleted_when_nobody_uses_them(cache, tmp_path):
    """A copy has 20 GB."""

    def use(content, model="model"):
        process = subprocess.Popen(
            [sys.executable, "-c", USING, f"{tmp_path}/{model}", content],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return process, process.stdout.readline().strip()

    def leave(process):
        process.communicate()
        assert process.returncode == 0

    first, old = use("old")
    other, kept = use("old", "another")
    second, new = use("new")
    assert [Path(path).exists() for path in (old, kept, new)] == [True, True, True]
    first.kill()
    first.communicate()
    third, same = use("new")
    assert same == new
    assert [Path(path).exists() for path in (old, kept, new)] == [False, True, True]
    for process in (other, second, third):
        leave(process)


LIMITED = """
import resource, sys
from console.errors import InputError
from runtime.batch.storage import Storage
from runtime.batch.workers.model_folder import local_model
storage = Storage("memory://model")
storage.write("runtime.json", b"{}")
storage.write("weights.bin", bytes(9999))
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    local_model(storage)
except InputError as error:
    print(error)
"""


def test_a_full_disk_is_named_with_what_to_set(cache):
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"memory://model: cannot be copied to {cache}/")
    assert done.stdout.endswith(f" (File too large); {CACHE} names the folder of copies\n")
    assert not [path for path in cache.glob("*/*") if path.is_dir()]


def test_a_folder_that_cannot_be_made_is_named_with_what_to_set(tmp_path, remote, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(CACHE, str(tmp_path / "file"))
    with pytest.raises(InputError) as caught:
        local_model(remote)
    assert str(caught.value).startswith(f"{tmp_path}/file: cannot hold a copy of the model (")
    assert str(caught.value).endswith(f"; set {CACHE} to another folder")
