"""From what a client sends to pictures and videos: the same as `generate` makes of the same files."""

from __future__ import annotations

import atexit
import base64
import binascii
import io
import re
import shutil
import tempfile
import warnings
import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from PIL import Image

from calib_data.images import read_image
from calib_data.sources.pdf import draw_page, page_count
from console.errors import InputError
from runtime.inputs.video import open_video
from runtime.serve.media.addresses import parse_domains, resolve_public
from runtime.serve.media.fetch import fetch
from runtime.serve.media.limits import MediaLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from runtime.inputs.video import Video
    from runtime.serve.media.addresses import Resolve

_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # others run programs, such as Ghostscript
_VIDEO_FORMATS = {  # what a file must begin with; others may name files and servers that FFmpeg would open
    "mov": re.compile(rb"....(ftyp|moov|mdat|wide|free|skip)", re.DOTALL),
    "matroska": re.compile(rb"\x1a\x45\xdf\xa3"),
    "avi": re.compile(rb"RIFF....AVI ", re.DOTALL),
}
_DATA_URI = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)
# One picture at a time is decoded: it may take much memory, PDFium must not run in two threads, and what
# `read_image` changes of Python's warnings while it reads is seen by all threads.
_DECODING = Lock()


@dataclass(frozen=True)
class Media:
    """Opens what the parts of a message hold. Any thread may call it."""

    limits: MediaLimits = field(default_factory=MediaLimits)
    """How large it may be."""
    domains: tuple[str, ...] = ()
    """Where files may be fetched from, such as "example.org"; subdomains are named apart."""
    resolve: Resolve = resolve_public
    """Finds the addresses of a host, and refuses those that are not public."""

    def __post_init__(self) -> None:
        parse_domains(self.domains)  # a wrong one is said at the start

    def image(self, url: str, place: str) -> Image.Image:
        """Open an image. Raises InputError, naming the place."""
        with _at(place):
            content = self._content(url)
            if content.startswith(b"%PDF"):
                raise InputError("is a PDF; send it as a part of type file")
            with _DECODING:
                self._check_picture(content)
                return read_image(io.BytesIO(content), place)

    def pages(self, url: str, place: str) -> Iterator[tuple[str, Image.Image]]:
        """Draw the pages of a PDF one at a time: for each its name in errors, and the picture."""
        with _at(place):
            content = self._content(url)
            if not content[:1024].lstrip().startswith(b"%PDF"):
                raise InputError("is not a PDF; send an image as a part of type image_url")
        with _kept(content, ".pdf") as path, _at(place, path):
            with _DECODING:
                total = page_count(path)
            if total > self.limits.pages:
                raise InputError(f"has {total} pages, more than {self.limits.pages}; send fewer")
            for index in range(total):
                with _DECODING:
                    page = draw_page(path, index)
                yield f"{place}: page {index + 1}", page

    def video(self, url: str, place: str) -> Video:
        """Open a video. Its file is deleted with it."""
        with _at(place):
            content = self._content(url)
            kind = next((name for name, begin in _VIDEO_FORMATS.items() if begin.match(content)), None)
            if kind is None:
                raise InputError("is not an MP4, MOV, WebM, MKV or AVI video; send one of these")
        path = _scratch_file(content, ".video")
        try:
            with _at(place, path):
                self._check_frames(path, kind)
                video = open_video(path)
                if video.frames * video.width * video.height > self.limits.video_pixels:
                    size = f"{video.frames} frames of {video.width} x {video.height} pixels"
                    raise InputError(f"has {size}, which take too long to decode; send a shorter or smaller one")
        except BaseException:
            path.unlink(missing_ok=True)
            raise

        weakref.finalize(video, path.unlink, missing_ok=True)

        def read(numbers: NDArray[np.int64]) -> Iterator[Image.Image]:
            with _at(place, path):
                yield from video.read(numbers)

        return replace(video, name=place, read=read)

    def _content(self, url: str) -> bytes:
        """The bytes of a data URI, or of a file in an allowed domain."""
        most = self.limits.bytes
        if url[:5].lower() != "data:":
            return fetch(url, parse_domains(self.domains), self.limits, self.resolve)
        if len(url) > most * 3 // 2 + 1024:
            raise InputError(f"has more than {most} bytes; send a smaller file")
        content = _decode(url)
        if len(content) > most:
            raise InputError(f"has more than {most} bytes; send a smaller file")
        return content

    def _check_picture(self, content: bytes) -> None:
        """Raise InputError, from the header, for other formats and for more pixels than allowed."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                    width, height = image.size
        except Image.DecompressionBombError as error:
            raise InputError(f"has too many pixels ({error}); send it smaller") from error
        except Exception as error:  # decoders raise almost anything on damaged files
            kinds = "PNG, JPEG, WebP, GIF, BMP, TIFF, JPEG 2000 or PNM"
            raise InputError(f"is not an image of a supported format; send {kinds}") from error
        self._check_size(width, height)

    def _check_frames(self, path: Path, kind: str) -> None:
        """Raise InputError, from the header, for frames of more pixels than allowed; `open_video` says all else."""
        try:
            import av
        except ModuleNotFoundError:
            raise InputError("this server reads no videos: PyAV is not installed; send frames as images") from None
        try:
            with av.open(path, format=kind, metadata_errors="ignore") as container:
                sizes = [(stream.width, stream.height) for stream in container.streams.video]
        except av.FFmpegError as error:
            raise InputError(f"is not a video that can be read ({error.strerror})") from error
        for width, height in sizes:
            self._check_size(width, height)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.limits.pixels:
            raise InputError(f"{width} x {height} pixels, more than {self.limits.pixels}; send it smaller")


def _decode(url: str) -> bytes:
    """The bytes of a data URI in base64; white space in it, and padding that is missing, do not matter."""
    head = _DATA_URI.match(url[:1024])
    if head is None or not head[2].lower().endswith(";base64"):
        raise InputError("is not a data URI in base64; send data:TYPE;base64,…")
    text = "".join(url[head.end() :].split())
    try:
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"is not valid base64 ({error})") from error


@contextmanager
def _at(place: str, path: Path | None = None) -> Iterator[None]:
    """Have every InputError of a block begin with the place, and not name the temporary file."""
    try:
        yield
    except InputError as error:
        message = str(error.args[0]) if error.args else ""
        if path is not None:
            message = message.replace(f"{path}: ", "").replace(str(path), "the file")
        message = message if message.startswith(place) else f"{place}: {message}"
        raise InputError(message) from error


@contextmanager
def _kept(content: bytes, suffix: str) -> Iterator[Path]:
    """A file of these bytes for the length of a block."""
    path = _scratch_file(content, suffix)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _scratch_file(content: bytes, suffix: str) -> Path:
    """Write a temporary file. Raises InputError where the disk is full.

    It has the lowest free number as its name: what is said once a file, such as about missing fonts, is kept by name.
    """
    for number in count():
        path = _scratch() / f"{number}{suffix}"
        try:
            with path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            continue
        except OSError as error:
            path.unlink(missing_ok=True)
            raise InputError(f"cannot be kept while it is read ({error.strerror})") from error
        break
    return path


@cache
def _scratch() -> Path:
    """A folder that only this process uses, deleted at its end."""
    folder = Path(tempfile.mkdtemp(prefix="exaone-docvlm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
