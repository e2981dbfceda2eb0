"""Folders at a path and at a URL: what is written is whole or not there, and names are relative."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from console.errors import InputError
from runtime.batch.storage import Storage


@pytest.fixture(params=["", "memory://"])
def storage(request, tmp_path) -> Storage:
    return Storage.at(f"{request.param}{tmp_path}/store")


def test_what_is_written_is_read(storage):
    storage.make_folder("a/b")
    storage.write("a/b/c.bin", b"0123456789")
    assert storage.read("a/b/c.bin") == b"0123456789"
    assert storage.read("a/b/c.bin", 3, 7) == b"3456"
    assert storage.read("a/b/c.bin", 7, 70) == b"789"
    assert storage.size("a/b/c.bin") == 10
    assert storage.local("a/b/c.bin").read_bytes() == b"0123456789"
    storage.write("a/b/c.bin", b"new")
    assert storage.read("a/b/c.bin") == b"new"
    single = Storage(f"{storage.url}/a/b/c.bin")
    assert single.is_file()
    assert not storage.is_file()
    assert (single.read(), single.size(), single.local().read_bytes()) == (b"new", 3, b"new")


def test_what_is_there_is_known_by_its_name(storage):
    assert not storage.exists()
    assert storage.names("a") == []
    storage.make_folder("a")
    for name in ("c", "a", "b"):
        storage.write(f"a/{name}", b"x")
    assert storage.exists()
    assert storage.exists("a/b")
    assert storage.exists("a")
    assert not storage.exists("a/d")
    assert storage.names() == ["a"]
    assert storage.names("a") == ["a", "b", "c"]
    storage.delete("a/b")
    storage.delete("a/b")  # another worker may have been faster
    assert storage.names("a") == ["a", "c"]


def test_names_written_by_others_are_seen(storage):
    """Workers write what the driver lists."""
    storage.make_folder("pages")
    assert storage.names("pages") == []
    Storage(storage.url).write("pages/1", b"x")
    assert storage.names("pages") == ["1"]


def test_a_walk_visits_folders_in_order_without_hidden_ones(storage):
    for name in ("b/2.png", "b/10.png", "a/d/x", "a/c/y", "z", "B/q", ".hidden/x", "a/.part", "a/c/@eaDir/x"):
        storage.make_folder(name.rpartition("/")[0])
        storage.write(name, b"x")
    assert list(storage.walk()) == [
        ("", ["z"]),
        ("B", ["q"]),
        ("a", []),
        ("a/c", ["y"]),
        ("a/d", ["x"]),
        ("b", ["10.png", "2.png"]),
    ]


def test_a_walk_keeps_little_of_each_file(tmp_path):
    """A folder may have a million: their sizes, owners and times would be a gigabyte."""
    count = 4000
    for number in range(count):
        (tmp_path / f"scan-{number:07}.png").touch()
    tracemalloc.start()
    try:
        assert sum(1 for _ in Storage.at(tmp_path).files()) == count
        assert tracemalloc.get_traced_memory()[1] < 200 * count
    finally:
        tracemalloc.stop()


def test_a_folder_is_copied_with_all_in_it(storage, tmp_path):
    for name in ("runtime.json", "graphs/a/decoder.onnx"):
        storage.make_folder(name.rpartition("/")[0])
        storage.write(name, name.encode())
    storage.download_folder(tmp_path / "copy")
    storage.download("runtime.json", tmp_path / "one.json")
    files = {path.relative_to(tmp_path / "copy").as_posix(): path for path in (tmp_path / "copy").rglob("*.*")}
    assert {name: path.read_bytes() for name, path in files.items()} == {
        "runtime.json": b"runtime.json",
        "graphs/a/decoder.onnx": b"graphs/a/decoder.onnx",
    }
    assert (tmp_path / "one.json").read_bytes() == b"runtime.json"


def test_paths_are_of_this_working_folder_wherever_workers_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Storage.at("a/b")
    assert found.url == str(tmp_path / "a/b")
    assert found.folder == tmp_path / "a/b"
    assert Storage.at(Path("a/b/")) == Storage.at(f"file://{tmp_path}/a/b") == found
    assert Storage.at("memory://a/b").folder is None
    assert Storage.at("memory://a/b").url == "memory://a/b"


@pytest.mark.parametrize("name", ["a::b", "file::c", "memory:x", "s3:", "~tilde", "#1 50% [a]*?.d", "한 글", "local:a"])
def test_any_name_is_a_folder(name, tmp_path, monkeypatch):
    """fsspec reads some characters as parts of a URL."""
    monkeypatch.chdir(tmp_path)
    found = Storage.at(name)
    found.make_folder(name)
    found.write(f"{name}/{name}", b"x")
    assert (tmp_path / name / name / name).read_bytes() == b"x"
    assert found.names(name) == [name]
    assert list(found.walk()) == [("", []), (name, [name])]
    assert found.local(f"{name}/{name}").read_bytes() == b"x"
    assert found.exists(f"{name}/{name}")


@pytest.mark.parametrize("scheme", ["", "memory://"])
@pytest.mark.parametrize(
    ("name", "held"), [("scans", True), ("scans/a/b", True), ("scans2", False), ("", False), ("a/scans", False)]
)
def test_what_a_folder_holds(name, held, scheme, tmp_path):
    folder = Storage.at(f"{scheme}{tmp_path}/scans")
    assert folder.holds(Storage.at(f"{scheme}{tmp_path}/{name}".rstrip("/"))) == held
    assert not folder.holds(Storage.at(f"file://{tmp_path}/scans" if scheme else f"memory://{tmp_path}/scans"))


BESIDE = {
    ("/data/a.jsonl", "scans/1.png"): "/data/scans/1.png",
    ("/data/a.jsonl", "../1.png"): "/data/../1.png",
    ("/a.jsonl", "1.png"): "/1.png",
    ("/data/a.jsonl", "/elsewhere/1.png"): "/elsewhere/1.png",
    ("/data/a.jsonl", "/else::where/1.png"): "/else::where/1.png",
    ("/data/a.jsonl", "file:///elsewhere/1.png"): "/elsewhere/1.png",
}


@pytest.mark.parametrize(("file", "name"), BESIDE)
def test_paths_in_a_file_are_relative_to_it(file, name):
    folder, rest = Storage(file).beside(name)
    assert folder.local(rest) == Path(BESIDE[file, name])


def test_paths_in_a_file_at_a_url_are_relative_to_it(tmp_path):
    data = Storage(f"memory://{tmp_path}/data")
    data.write("scans/1.png", b"1")
    file = Storage(f"{data.url}/a.jsonl")
    (tmp_path / "2.png").write_bytes(b"2")
    for name, content in {"scans/1.png": b"1", f"{data.url}/scans/1.png": b"1", str(tmp_path / "2.png"): b"2"}.items():
        folder, rest = file.beside(name)
        assert folder.read(rest) == content
        assert folder.local(rest).read_bytes() == content
        assert folder.local(rest).name == Path(name).name


LIMITED = """
import resource, sys
from console.errors import InputError
from runtime.batch.storage import Storage
storage = Storage.at(sys.argv[1])
storage.write("old.bin", b"old" * 9)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for name in ("old.bin", "new.bin"):
    try:
        storage.write(name, b"new" * 999)
    except InputError as error:
        print(error)
"""


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    kept = "what was finished is kept: run the same command again"
    assert done.stdout.splitlines() == [
        f"{tmp_path}/{name}: cannot be written (File too large); {kept}" for name in ("old.bin", "new.bin")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["old.bin"]
    assert (tmp_path / "old.bin").read_bytes() == b"old" * 9


KILLED = """
import os, sys
from runtime.batch import storage
os.fsync = lambda file: os.kill(os.getpid(), 9)
storage.Storage.at(sys.argv[1]).write("old.bin", b"new" * 999)
"""


def test_a_writer_that_is_killed_leaves_what_was_there(tmp_path):
    """Its partial file is hidden: it is no page of the output, and no file of a source."""
    (tmp_path / "old.bin").write_bytes(b"old")
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)]).returncode == -9
    assert (tmp_path / "old.bin").read_bytes() == b"old"
    (partial,) = set(tmp_path.iterdir()) - {tmp_path / "old.bin"}
    assert partial.match(".old.bin.*.partial")
    assert list(Storage.at(tmp_path).walk()) == [("", ["old.bin"])]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
def test_what_may_not_be_read_or_written_is_named(tmp_path):
    (tmp_path / "a").mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"a/b: cannot be written \(Permission denied\); what"):
        Storage.at(tmp_path).write("a/b", b"x")


def test_what_is_not_there_is_named(storage):
    place = f"{storage.url}/none"
    for call in (storage.read, storage.size):
        with pytest.raises(InputError) as caught:
            call("none")
        assert str(caught.value).startswith(f"{place}: cannot be read (")
    with pytest.raises(InputError) as caught:
        list(storage.walk())
    assert str(caught.value).startswith(f"{storage.url}: cannot be listed (")


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    storage = Storage.at(tmp_path)
    with pytest.raises(InputError, match=r"file/a: cannot be written \(Not a directory\); what"):
        storage.write("file/a", b"x")
    with pytest.raises(InputError, match=r"file: cannot be made \(File exists\)$"):
        storage.make_folder("file")


URLS = {
    "nope://bucket/scans": "is neither a path nor a URL that fsspec reads (Protocol not known: nope)",
    "simplecache::memory://a": (
        "is neither a path nor a URL that fsspec reads (Protocol not known: simplecache::memory)"
    ),
    "s4://bucket/scans": "is neither a path nor a URL that fsspec reads (Protocol not known: s4)",
}


@pytest.mark.parametrize("url", URLS)
def test_an_unknown_url_is_one_line(url):
    with pytest.raises(InputError) as caught:
        Storage.at(url)
    assert str(caught.value) == f"{url}: {URLS[url]}"


WITHOUT = """
import sys
sys.modules["s3fs"] = None
from console.errors import InputError
from runtime.batch.storage import Storage
try:
    Storage.at("s3://bucket/scans")
except InputError as error:
    print(error)
"""


def test_the_package_of_a_url_is_named_where_it_is_missing():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout == "s3://bucket/scans: Install s3fs to access S3\n"


class Refusing(MemoryFileSystem):
    """Raises in place of every answer what libraries of object stores raise, which is no OSError."""

    protocol = "refusing"

    def _refuse(self, *_args, **_options):
        raise RuntimeError("Unable to locate\n  credentials")

    info = ls = cat_file = pipe_file = _open = rm_file = makedirs = get_file = ukey = find = _refuse


fsspec.register_implementation("refusing", Refusing, clobber=True)


def test_what_no_oserror_says_is_one_line_too(tmp_path):
    storage = Storage("refusing://bucket/scans")
    calls = [
        (storage.exists, "read"),
        (storage.is_file, "read"),
        (storage.names, "listed"),
        (lambda: list(storage.walk()), "listed"),
        (storage.read, "read"),
        (lambda: storage.find(""), "read"),
        (storage.size, "read"),
        (lambda: storage.version(""), "read"),
        (storage.fingerprint, "read"),
        (lambda: storage.opened().__enter__(), "read"),
        (lambda: storage.write("", b""), "written"),
        (storage.make_folder, "made"),
        (lambda: storage.delete(""), "deleted"),
        (storage.local, "read"),
        (lambda: storage.download("", tmp_path / "a"), f"copied to {tmp_path}/a"),
        (lambda: storage.download_folder(tmp_path / "a"), f"copied to {tmp_path}/a"),
    ]
    for call, verb in calls:
        with pytest.raises(InputError) as caught:
            call()
        says = f"refusing://bucket/scans: cannot be {verb} (Unable to locate credentials)"
        assert str(caught.value).startswith(says)


class Locked(MemoryFileSystem):
    """Looks for credentials as soon as it is made."""

    protocol = "locked"
    cachable = False

    def __init__(self, *args, **options):
        raise RuntimeError("no account")


def test_a_store_that_cannot_be_opened_is_one_line():
    fsspec.register_implementation("locked", Locked, clobber=True)
    with pytest.raises(InputError, match=r"^locked://bucket: cannot be opened \(no account\)$"):
        Storage.at("locked://bucket")


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    """Root lists all: the system call says what it would say to others."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError) as caught:
        list(Storage.at(tmp_path).files())
    assert str(caught.value) == f"{tmp_path}/a/b: cannot be listed (Permission denied)"


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, (16 << 20) + 5, (40 << 20) + 3])
def test_a_fingerprint_is_of_the_content(size, tmp_path):
    """Not of when and where it was written; a change at an end, or of the size, is always seen."""
    path, content = tmp_path / "a", bytearray(size)
    path.write_bytes(content)
    before = Storage.at(path).fingerprint()
    os.utime(path, (1, 1))
    (tmp_path / "b").write_bytes(content)
    (remote := Storage(f"memory://{tmp_path}/c")).write("", bytes(content))
    assert {Storage.at(path).fingerprint(), Storage.at(tmp_path / "b").fingerprint(), remote.fingerprint()} == {before}
    for place in {0, size - 1} if size else ():
        content[place] ^= 1
        path.write_bytes(content)
        assert Storage.at(path).fingerprint() != before
        content[place] ^= 1
    path.write_bytes(content + b"\0")
    assert Storage.at(path).fingerprint() != before


def test_any_byte_of_a_small_file_changes_its_fingerprint(tmp_path):
    content = bytearray(3 << 20)
    seen = set()
    for place in range(0, len(content), 100_003):
        content[place] ^= 1
        (tmp_path / "a").write_bytes(content)
        seen.add(Storage.at(tmp_path / "a").fingerprint())
        content[place] ^= 1
    assert len(seen) == len(range(0, len(content), 100_003))


def test_names_in_a_url_are_taken_as_they_are():
    """fsspec would take what follows :: for another URL, and chain the two."""
    storage = Storage("memory://a::b")
    storage.write("c::memory:/d", b"x")
    assert list(Storage("memory://a::b").walk()) == [("", []), ("c::memory:", ["d"])]
    assert Storage("memory://a::b/c::memory:/d").read() == b"x"
    assert storage.local("c::memory:/d").read_bytes() == b"x"
    folder, name = Storage("memory://other/a.jsonl").beside("memory://a::b/c::memory:/d")
    assert folder.read(name) == b"x"


def test_a_path_may_have_the_middle_of_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans" / "a:").mkdir(parents=True)
    (tmp_path / "scans" / "a:" / "b").write_bytes(b"x")
    assert Storage.at(f"{tmp_path}/scans/a://b").read() == Storage.at("scans/a://b").read() == b"x"
    folder, name = Storage.at(tmp_path / "x.jsonl").beside("scans/a://b")
    assert folder.read(name) == b"x"


def test_a_file_whose_name_is_a_pattern_is_copied_and_no_other(tmp_path):
    storage = Storage("memory:///patterns")
    for name, content in (("scan1.png", b"other"), ("scan[1].png", b"wanted"), ("scan?.png", b"asked")):
        storage.write(name, content)
    for name, content in (("scan[1].png", b"wanted"), ("scan?.png", b"asked")):
        assert storage.local(name).read_bytes() == content
