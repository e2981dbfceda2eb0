"""Files that clients send, good and bad, and what a look-up of a name finds."""

import base64
import io
import socket
import struct
import zlib

import numpy as np
from PIL import Image

from ....calib_data.sources.pdf_files import pdf_file

PLACE = "messages[1].content[0].image_url"


def data_uri(content, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(width, height, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), np.uint8)
    return Image.fromarray(pixels if len(mode) > 1 else pixels[..., 0])


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(40, 20), "JPEG", exif=exif)


FILES = {
    "rgb.png": encoded(noise(30, 20)),
    "clear.png": encoded(noise(30, 20, "RGBA")),
    "grey.png": encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)),
    "turned.jpg": rotated(),
    "scan.tif": encoded(noise(30, 20, "L"), "TIFF", compression="tiff_lzw"),
    "photo.webp": encoded(noise(30, 20), "WEBP"),
}


def png_of(width, height):
    """A PNG whose header promises a size; its data is tiny."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def tiff_of(width, height):
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 9)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def pdf_pages(count, box="0 0 50 50"):
    kids = " ".join(f"{number} 0 R" for number in range(3, 3 + count))
    page = f"<< /Type /Page /Parent 2 0 R /MediaBox [{box}] >>"
    return pdf_file(
        "<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {count} >>", *[page] * count
    )


HUGE_JPEG = pdf_file(
    "<< /Type /Catalog /Pages 2 0 R >>",
    "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
    "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 50 50] /Contents 4 0 R /Resources << /XObject << /I 5 0 R >> >> >>",
    b"<< /Length 22 >>\nstream\n50 0 0 50 0 0 cm /I Do\nendstream",
    b"<< /Type /XObject /Subtype /Image /Width 60000 /Height 60000 /ColorSpace /DeviceGray /BitsPerComponent 8 "
    b"/Filter /DCTDecode /Length 4 >>\nstream\n\xff\xd8\xff\xd9\nendstream",
)


def looked_up(*addresses):
    """What `socket.getaddrinfo` would find."""
    return lambda host, port, **_: [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses
    ]
