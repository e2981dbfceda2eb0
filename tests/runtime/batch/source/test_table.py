"""Rows of Parquet files, against pyarrow's own reading of the whole file."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from console.errors import InputError
from runtime.batch.source.page import PART_PAGES
from runtime.batch.source.table import Table
from runtime.batch.storage import Storage

from ..listing import listed_pages, pixels, same


def table(path, prompt=None) -> Table:
    return Table(Storage.at(path), prompt)


def write(path, columns, **options) -> Path:
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


def noise(seed) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)


def png(seed) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(seed)).save(file, "PNG")
    return file.getvalue()


def save(folder, *seeds):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / f"{seed}.png").write_bytes(png(seed))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(rows=st.integers(0, 5 * PART_PAGES), group=st.integers(1, 4 * PART_PAGES))
def test_every_row_once_and_in_order_whatever_the_row_groups(rows, group):
    with tempfile.TemporaryDirectory() as folder:
        columns = {"image": [f"{n}.png" for n in range(rows)], "question": [f"What is {n}?" for n in range(rows)]}
        path = write(Path(folder, "a.parquet"), columns, row_group_size=group)
        source = table(path)
        parts = [listed.part for listed in source.parts()]
        assert all(part.count <= PART_PAGES for part in parts)
        assert [(page.document, page.prompt) for page in listed_pages(source)] == [
            (row["image"], row["question"]) for row in pq.read_table(path).to_pylist()
        ]
        if parts:  # each part alone, as a worker has it
            part = parts[len(parts) // 2]
            alone = [page.prompt for page in source.pages(part)]
            assert alone == [f"What is {n}?" for n in range(part.first, part.first + part.count)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize("name", ["image", "images"])
def test_a_column_of_bytes(kind, name, tmp_path):
    contents = [png(seed) for seed in range(5)]
    path = write(tmp_path / "a.parquet", {name: pa.array(contents, kind), "other": range(5)})
    pages = listed_pages(table(path, "Which?"))
    assert [page.document for page in pages] == [f"a.parquet: row {row}" for row in range(5)]
    assert {(page.page, page.prompt) for page in pages} == {(None, "Which?")}
    for seed, page in enumerate(pages):
        assert same(pixels(page), [noise(seed)])


def test_a_column_as_hugging_face_keeps_pictures(tmp_path):
    """Bytes come first; their path is the name. Without bytes, the picture is at the path."""
    save(tmp_path, 2)
    images = [{"bytes": png(0), "path": "scan.png"}, {"bytes": png(1), "path": None}, {"bytes": None, "path": "2.png"}]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pages = listed_pages(table(write(tmp_path / "a.parquet", {"image": pa.array(images, kind)})))
    assert [page.document for page in pages] == ["scan.png", "a.parquet: row 1", "2.png"]
    assert {page.prompt for page in pages} == {"Read the text."}
    for seed, page in enumerate(pages):
        assert same(pixels(page), [noise(seed)])


def test_paths_are_relative_to_the_file_or_absolute(tmp_path):
    save(tmp_path / "scans", 0)
    save(tmp_path / "elsewhere", 1)
    names = ["scans/0.png", str(tmp_path / "elsewhere" / "1.png"), "elsewhere/../scans/0.png"]
    pages = listed_pages(table(write(tmp_path / "a.parquet", {"image_path": names})))
    assert [page.document for page in pages] == names
    for seed, page in zip((0, 1, 0), pages, strict=True):
        assert same(pixels(page), [noise(seed)])


def test_a_folder_of_files_is_their_rows_and_paths_are_relative_to_it(tmp_path):
    save(tmp_path / "scans", *range(4))
    for number, name in enumerate(["b.parquet", "a.PARQUET", "more/c.parquet"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, {"image": [f"scans/{number}.png", "scans/3.png"], "id": [number, 10 + number]})
    write(tmp_path / ".hidden.parquet", {"image": ["no.png"]})
    pages = listed_pages(table(tmp_path))
    assert [page.document for page in pages] == ["1", "11", "0", "10", "2", "12"]
    for seed, page in zip((1, 3, 0, 3, 2, 3), pages, strict=True):
        assert same(pixels(page), [noise(seed)])
    assert [name for name, _ in pages[5].pictures()] == [f"{tmp_path}/more/c.parquet: row 1"]


def test_a_list_of_pictures_is_one_row(tmp_path):
    save(tmp_path, 3)
    kind = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    images = [[{"bytes": png(seed), "path": f"{seed}.png"} for seed in (1, 2)] + [{"bytes": None, "path": "3.png"}]]
    (page,) = listed_pages(table(write(tmp_path / "a.parquet", {"images": pa.array(images, kind)})))
    assert page.document == "1.png"
    assert same(pixels(page), [noise(seed) for seed in (1, 2, 3)])


def test_the_first_of_document_id_and_name_names_a_row(tmp_path):
    columns = {"name": ["n", "n", None], "id": [7, None, None], "document": [None, "d", None], "image": ["p"] * 3}
    assert [page.document for page in listed_pages(table(write(tmp_path / "a.parquet", columns)))] == ["7", "d", "p"]


ROWS = {
    "null": ({"image": pa.array([None, png(1)], pa.binary())}, "has no picture"),
    "a null in a list": ({"images": pa.array([[None], [png(1)]], pa.list_(pa.binary()))}, "has no picture"),
    "no pictures": ({"images": pa.array([[], [png(1)]], pa.list_(pa.binary()))}, "has no picture"),
    "neither bytes nor path": (
        {"image": pa.array([{}, {"bytes": png(1)}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))},
        "has no picture",
    ),
    "a path of another type": ({"image": pa.array([{"path": 5}, None]), "images": [None, [png(1)]]}, "has no picture"),
    "text that is no UTF-8": (
        {"image": [png(0), png(1)], "prompt": pa.array([b"\xff", b"a"]).view(pa.string())},
        "is not valid: 'utf-8' codec can't decode",
    ),
    "a date after 9999": (
        {"image": [png(0), png(1)], "id": pa.array([1 << 40, 0], pa.timestamp("s"))},
        "is not valid: date value out of range",
    ),
    "no image": ({"image": [b"no picture", png(1)]}, "is not an image that Pillow reads"),
    "empty": ({"image": [b"", png(1)]}, "is not an image but empty"),
    "two questions": (
        {"image": [png(0), png(1)], "prompt": ["a", "b"], "query": ["c", None]},
        "is not valid: it has 'prompt' and 'query'",
    ),
    "an empty question": ({"image": [png(0), png(1)], "prompt": [" ", "b"]}, "is not valid: 'prompt' is empty"),
    "a number asked": (
        {"image": [png(0), png(1)], "prompt": pa.array([3, None])},
        "is not valid: 'prompt' is not text",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row_is_a_page_with_its_error(case, tmp_path):
    columns, says = ROWS[case]
    path = write(tmp_path / "a.parquet", columns)
    bad, good = listed_pages(table(path))
    with pytest.raises(InputError) as caught:
        pixels(bad)
    assert str(caught.value).startswith(f"{path}: row 0")
    assert says in str(caught.value)
    assert same(pixels(good), [noise(1)])


def test_a_missing_picture_names_its_row(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": ["none.png"]})
    (page,) = listed_pages(table(path))
    with pytest.raises(InputError, match="row 0: ") as caught:
        pixels(page)
    assert f"{tmp_path}/none.png: no such file" in str(caught.value)


def test_a_file_without_pictures_is_refused_with_its_columns(tmp_path):
    write(tmp_path / "a.parquet", {"image": ["a.png"]})
    path = write(tmp_path / "b.parquet", {"picture": ["a.png"], "label": [1]})
    with pytest.raises(InputError) as caught:
        list(table(tmp_path).parts())
    says = "has no column of pictures (image, images, file_name, image_path); its columns are picture, label"
    assert str(caught.value) == f"{path}: {says}"


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table at all" * 9, None])
def test_a_damaged_file_is_refused_in_one_line(content, tmp_path):
    path = write(tmp_path / "a.parquet", {"image": ["a.png"] * 9})
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(InputError) as caught:
        list(table(path).parts())
    assert str(caught.value).startswith(f"{path}: cannot be read as Parquet (")
    assert "\n" not in str(caught.value)


def damage(path, group, column="prompt") -> None:
    """Change bytes in the middle of a column of a row group; the end of the file stays valid."""
    metadata = pq.ParquetFile(path).metadata.row_group(group)
    chunk = next(one for one in map(metadata.column, range(metadata.num_columns)) if one.path_in_schema == column)
    content = bytearray(path.read_bytes())
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    middle = begin + chunk.total_compressed_size // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip"])
def test_rows_that_cannot_be_decoded_are_pages_with_their_error(compression, tmp_path):
    """Other row groups are read; before, no other page of a million was."""
    prompts = [f"{np.random.default_rng(row).integers(10**12)}" * 5 for row in range(60)]
    columns = {"image": [png(0)] * 60, "prompt": prompts}
    path = write(tmp_path / "a.parquet", columns, row_group_size=20, compression=compression, use_dictionary=["image"])
    damage(path, 1)
    pages = listed_pages(table(path))
    assert [page.prompt for page in pages] == [*prompts[:20], *[""] * 20, *prompts[40:]]
    for row, page in enumerate(pages):
        assert page.document == f"a.parquet: row {row}"
        if page.prompt:
            assert same(pixels(page), [noise(0)])
            continue
        with pytest.raises(InputError) as caught:
            pixels(page)
        assert str(caught.value).startswith(f"{path}: row {row} cannot be read as Parquet (")
        assert "\n" not in str(caught.value)


def test_a_file_that_is_damaged_after_it_was_listed_is_pages_with_errors(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": [png(0)] * 20})
    source = table(path)
    parts = [listed.part for listed in source.parts()]
    path.write_bytes(path.read_bytes()[:-20])
    for part in parts:
        pages = list(source.pages(part))
        assert len(pages) == part.count
        with pytest.raises(InputError, match="cannot be read as Parquet"):
            pixels(pages[-1])


def test_a_file_that_has_vanished_or_lost_rows_since_it_was_listed(tmp_path):
    """Which ends the run: the file may come back."""
    path = write(tmp_path / "a.parquet", {"image": [png(0)] * 20})
    source = table(path)
    _, last = [listed.part for listed in source.parts()]
    write(path, {"image": [png(0)] * 18})
    assert len(list(source.pages(last))) == 2
    path.unlink()
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read \(No such file"):
        list(source.pages(last))


def test_names_of_columns_that_are_no_utf8_are_refused_in_one_line(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": ["a.png"], "xxyyzz": [1]})
    path.write_bytes(path.read_bytes().replace(b"xxyyzz", b"\xff\xfeyyzz"))
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as Parquet \("):
        list(table(path).parts())
