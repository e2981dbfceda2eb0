"""Whether a video file is shorter than it says, by the sizes in its headers: decoders end such a file in silence."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")  # how Matroska and WebM begin, and their frames


def is_cut(path: Path) -> bool:
    """Whether the frames of a Matroska, WebM or MP4 file should reach beyond its end; False for what does not say."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) == _EBML:
            return _segment_end(file) > size
        return _media_end(file, size) > size


def _segment_end(file: BinaryIO) -> int:
    """Where Matroska's segment ends; 0 for one without a size, as a recording is that was never finished."""
    file.seek(_ebml_size(file) or 0, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return 0
    length = _ebml_size(file)
    return 0 if length is None else file.tell() + length


def _ebml_size(file: BinaryIO) -> int | None:
    """The size at this place: the zeros that it begins with tell its length; None where all bits behind them are 1."""
    first = int.from_bytes(file.read(1), "big")
    length = 9 - first.bit_length()
    unknown = (1 << 7 * length) - 1
    value = int.from_bytes(bytes([first]) + file.read(length - 1), "big") & unknown
    return None if value == unknown else value


def _media_end(file: BinaryIO, size: int) -> int:
    """Where the last of MP4's boxes of frames ends; 0 for what has none."""
    at = end = 0
    while at < size:
        file.seek(at)
        header = file.read(16)
        if len(header) < 8:
            break
        length, kind = struct.unpack(">I4s", header[:8])
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        if length < 8:  # 0 is to the end of the file, whatever that is; anything else is no box
            break
        at += length
        end = at if kind == b"mdat" else end
    return end
