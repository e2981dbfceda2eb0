"""TIFF files of any depth, photometric interpretation and layout, written tag by tag (TIFF 6.0)."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

_SHORT, _LONG = 3, 4
_COMPRESSIONS = {1: bytes, 8: zlib.compress}


@dataclass(frozen=True)
class Tiff:
    """How samples are stored. Names are those of the tags."""

    photometric: int = 1
    """0 white is zero, 1 black is zero, 2 RGB, 3 palette, 4 mask, 5 CMYK, 6 YCbCr, 8 CIE L*a*b*."""
    bits: int = 8
    """Of a sample."""
    sample_format: int = 1
    """1 unsigned, 2 signed, 3 float."""
    order: str = "<"
    """Of bytes: "<" or ">"."""
    fill_order: int = 1
    """2: the first pixel is in the lowest bits."""
    planar: int = 1
    """2: one sample after the other, not one pixel after the other."""
    compression: int = 1
    """1 none, 8 Deflate."""
    rows_per_strip: int = 1 << 20
    """Rows of a strip."""
    extra: tuple[int, ...] = ()
    """Meaning of further samples: 0 unknown, 1 associated alpha, 2 alpha."""
    more: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    """Further tags: number, type, values."""

    def file(self, *pages):
        """Bytes of a file. pages: samples [height, width, samples] of each, and tags of its own."""
        content = bytearray((b"II*\0" if self.order == "<" else b"MM\0*") + bytes(4))
        link = 4
        for samples, tags in pages:
            strips = [bytes(strip) for strip in self._strips(samples)]
            offsets = []
            for strip in strips:
                offsets.append(len(content))
                content += strip + bytes(len(strip) % 2)
            height, width, count = samples.shape
            entries = [
                (256, _LONG, (width,)),
                (257, _LONG, (height,)),
                (258, _SHORT, (self.bits,) * count),
                (259, _SHORT, (self.compression,)),
                (262, _SHORT, (self.photometric,)),
                (266, _SHORT, (self.fill_order,)),
                (273, _LONG, tuple(offsets)),
                (277, _SHORT, (count,)),
                (278, _LONG, (min(self.rows_per_strip, height),)),
                (279, _LONG, tuple(map(len, strips))),
                (284, _SHORT, (self.planar,)),
                (339, _SHORT, (self.sample_format,) * count),
                *([(338, _SHORT, self.extra)] if self.extra else []),
            ]
            own = {entry[0]: entry for entry in (*entries, *self.more, *tags)}
            struct.pack_into(self.order + "I", content, link, len(content))
            link = self._write_directory(content, sorted(own.values()))
        return bytes(content)

    def _write_directory(self, content, entries):
        """Append a directory, and return where the next one's offset belongs."""
        start, after = len(content), len(content) + 2 + 12 * len(entries) + 4
        directory, values = bytearray(struct.pack(self.order + "H", len(entries))), bytearray()
        for tag, kind, numbers in entries:
            packed = struct.pack(f"{self.order}{len(numbers)}{'H' if kind == _SHORT else 'I'}", *numbers)
            if len(packed) > 4:
                packed, long = struct.pack(self.order + "I", after + len(values)), packed
                values += long + bytes(len(long) % 2)
            directory += struct.pack(self.order + "HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
        content += directory + bytes(4) + values
        return start + len(directory)

    def _strips(self, samples):
        planes = np.moveaxis(samples, 2, 0)[..., None] if self.planar == 2 else samples[None]
        for plane in planes:
            for start in range(0, len(plane), self.rows_per_strip):
                rows = [self.packed(row.reshape(-1)) for row in plane[start : start + self.rows_per_strip]]
                yield self._filled(_COMPRESSIONS[self.compression](b"".join(rows)))

    def packed(self, row):
        """Bytes of a row of samples."""
        if self.bits in (8, 16, 32, 64):
            return row.astype(f"{self.order}{' uif'[self.sample_format]}{self.bits // 8}").tobytes()
        shifts = np.arange(self.bits - 1, -1, -1)
        return np.packbits((row.astype(np.int64)[:, None] >> shifts & 1).astype(np.uint8)).tobytes()

    def _filled(self, data):
        """Data as it is stored: compressed first, then in the order of bits."""
        if self.fill_order == 1:
            return data
        return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()
