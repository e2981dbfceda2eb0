"""Lengths that video files say, written by the byte; `test_video.py` cuts real ones."""

import struct

import pytest

from runtime.inputs.video_files import is_cut


def box(kind, length, content=b"", large=None):
    return struct.pack(">I4s", length, kind) + (b"" if large is None else struct.pack(">Q", large)) + content


FTYP, EBML = box(b"ftyp", 12, b"qt  "), "1a45dfa3 81 00 18538067"
LENGTHS = {  # whether what is said reaches beyond the end
    "a box": (FTYP + box(b"mdat", 16, bytes(8)), False),
    "a box cut": (FTYP + box(b"mdat", 17, bytes(8)), True),
    "a large box": (FTYP + box(b"mdat", 1, bytes(8), large=24), False),
    "a large box cut": (FTYP + box(b"mdat", 1, bytes(8), large=25), True),
    "the largest box": (FTYP + box(b"mdat", 1, bytes(8), large=(1 << 64) - 1), True),
    "a box to the end, wherever that is": (FTYP + box(b"mdat", 0, bytes(8)), False),
    "behind a box": (box(b"mdat", 16, bytes(8)) + b"whatever a camera adds", False),
    "a segment": (bytes.fromhex(f"{EBML} 84") + bytes(4), False),
    "a segment, in two bytes": (bytes.fromhex(f"{EBML} 4004") + bytes(4), False),
    "a segment cut": (bytes.fromhex(f"{EBML} 4005") + bytes(4), True),
    "a segment of unknown size": (bytes.fromhex(f"{EBML} ff") + bytes(4), False),
    "a segment of unknown size, in eight bytes": (bytes.fromhex(f"{EBML} 01ffffffffffffff") + bytes(4), False),
    "no segment": (bytes.fromhex("1a45dfa3"), False),
    "nothing": (b"", False),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_lengths_by_the_byte(case, tmp_path):
    content, cut = LENGTHS[case]
    (tmp_path / "film").write_bytes(content)
    assert is_cut(tmp_path / "film") == cut
