"""Which kind of source a path is."""

import pytest

from console.errors import InputError
from runtime.batch.source.folder import Folder
from runtime.batch.source.lines import Lines
from runtime.batch.source.open import open_source, source_version
from runtime.batch.source.table import Table
from runtime.batch.storage import Storage

KINDS = {
    "images": (["a.png", "b.pdf"], "", Folder),
    "a PDF": (["a.PDF"], "a.PDF", Folder),
    "an image": (["a.JPG"], "a.JPG", Folder),
    "lines": (["a.JSONL"], "a.JSONL", Lines),
    "a table": (["a.Parquet"], "a.Parquet", Table),
    "tables": (["a.parquet", "b.parquet"], "", Table),
    "a table and its pictures": (["1.png", "a.parquet", "scans/2.png"], "", Table),
    "tables below": (["README.md", "data/a.parquet"], "", Table),
    "images, and tables below": (["1.png", "data/a.parquet"], "", Folder),
    "images below, then tables": (["a/1.png", "b/2.parquet"], "", Folder),
    "tables below, then images": (["a/1.parquet", "b/2.png"], "", Table),
    "hidden tables": ([".cache/a.parquet", ".b.parquet", "c/1.png"], "", Folder),
    "nothing": ([], "", Folder),
    "nothing of use": (["notes.txt", "a.jsonl"], "", Folder),
}


@pytest.mark.parametrize("scheme", ["", "memory://"])
@pytest.mark.parametrize("case", KINDS)
def test_the_kind_of_a_source(case, scheme, tmp_path):
    names, name, kind = KINDS[case]
    storage = Storage.at(f"{scheme}{tmp_path}/source")
    storage.make_folder()
    for one in names:
        storage.make_folder(one.rpartition("/")[0])
        storage.write(one, b"x")
    given = Storage.at(f"{scheme}{tmp_path}/source/{name}".rstrip("/"))
    source = open_source(given, None, per_document=False)
    assert type(source) is kind
    assert source.kind == {Folder: "folder", Lines: "lines", Table: "table"}[kind]
    if kind is Folder:
        assert open_source(given, None, per_document=True).per_document
    else:
        with pytest.raises(InputError, match=r"^--per document: .* has a row for each picture; leave it out$"):
            open_source(given, None, per_document=True)


def test_what_is_no_source_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    cases = {
        tmp_path / "none": "none: no such file or folder",
        tmp_path / "a.txt": "a.txt: is no .jsonl, .parquet, .pdf or image; give one of these, or a folder",
        f"memory://{tmp_path}/none": "none: no such file or folder",
    }
    for place, says in cases.items():
        with pytest.raises(InputError) as caught:
            open_source(Storage.at(place), None, per_document=False)
        assert str(caught.value) == f"{str(place).rpartition('/')[0]}/{says}"


@pytest.mark.parametrize("scheme", ["", "memory://"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.pdf", "a.png"])
def test_the_version_of_a_file_is_that_of_its_content(name, scheme, tmp_path):
    storage = Storage.at(f"{scheme}{tmp_path}/{name}")
    versions = []
    for content in (b"one", b"two", b"one"):
        storage.write("", content)
        versions.append(source_version(open_source(storage, None, per_document=False)))
    assert versions[0] == versions[2] != versions[1]


def test_a_folder_has_its_kind_alone_and_may_get_files(tmp_path):
    """A table that is dropped into a folder of scans changes its kind."""
    (tmp_path / "1.png").write_bytes(b"x")
    source = open_source(Storage.at(tmp_path), None, per_document=False)
    assert (source.kind, source_version(source)) == ("folder", None)
    (tmp_path / "a.parquet").write_bytes(b"x")
    source = open_source(Storage.at(tmp_path), None, per_document=False)
    assert (source.kind, source_version(source)) == ("table", None)
