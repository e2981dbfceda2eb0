"""PDF files written object by object, for what no library here writes: forms, annotations, boxes, layers."""

import hashlib

APPEARANCE = "/AP << /N 6 0 R >>"
VALUE = "96,200"
FORM = "/AcroForm << /Fields [7 0 R] /DA (/F1 14 Tf 0 g) /DR << /Font << /F1 4 0 R >> >> >>"
_RESOURCES = "/Resources << /Font << /F1 4 0 R >> /Properties << /Layer 8 0 R >> >>"


def stream(data, entries=""):
    """A stream object. data: bytes or ASCII text."""
    content = data if isinstance(data, bytes) else data.encode()
    return f"<< /Length {len(content)} {entries} >>\nstream\n".encode() + content + b"\nendstream"


def pdf_file(*objects, trailer=""):
    """Bytes of a PDF of objects 1, 2, …, of which the first is the catalog."""
    content, offsets = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(content))
        content += f"{number} 0 obj\n".encode() + (body if isinstance(body, bytes) else body.encode()) + b"\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R "
    return content + f"{end}{trailer} >>\nstartxref\n{len(content)}\n%%EOF\n".encode()


def page_file(
    content="", *, annotation="null", layer="null", catalog="", box="0 0 220 100", page="", extra=(), trailer=""
):
    """Bytes of a PDF of one page, with Helvetica /F1 and one annotation.

    `APPEARANCE` is an appearance stream that reads VALUE; `layer`, object 8, is an optional content group.
    """
    return pdf_file(
        f"<< /Type /Catalog /Pages 2 0 R {catalog} >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [{box}] /Contents 5 0 R /Annots [7 0 R] {_RESOURCES} {page} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        stream(content),
        stream(text(VALUE, 2, 6), f"/Type /XObject /Subtype /Form /BBox [0 0 100 24] {_RESOURCES}"),
        annotation,
        layer,
        *extra,
        trailer=trailer,
    )


def text(words, x, y):
    """Page content that writes words at a place."""
    return f"BT /F1 14 Tf {x} {y} Td ({words}) Tj ET"


def annotation(entries, flags=4):
    """An annotation of the place where `printed` has VALUE."""
    return f"<< /Type /Annot /Rect [100 64 200 88] /P 3 0 R /F {flags} {entries} >>"


def field(entries, flags=4):
    """A form field at the same place."""
    return annotation(f"/Subtype /Widget /T (total) /DA (/F1 14 Tf 0 g) {entries}", flags)


def printed():
    """A page with VALUE in its content, at the place of `annotation`."""
    return page_file(text(VALUE, 102, 70))


def encrypted(user_password):
    """A page that says VALUE, encrypted with 40-bit RC4 (PDF 1.7, 7.6: algorithms 1 to 4)."""
    padding = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")
    user, identifier = (user_password.encode() + padding)[:32], bytes(16)
    owner_key = hashlib.md5((b"owner" + padding)[:32]).digest()[:5]
    owner = _rc4(owner_key, user)
    key = hashlib.md5(user + owner + (-4).to_bytes(4, "little", signed=True) + identifier).digest()[:5]
    content = _rc4(hashlib.md5(key + (5).to_bytes(3, "little") + bytes(2)).digest()[:10], text(VALUE, 102, 70).encode())
    entries = f"/Filter /Standard /V 1 /R 2 /P -4 /O <{owner.hex()}> /U <{_rc4(key, padding).hex()}>"
    trailer = f"/Encrypt 9 0 R /ID [<{identifier.hex()}> <{identifier.hex()}>]"
    return page_file(content, extra=[f"<< {entries} >>"], trailer=trailer)


def _rc4(key, data):
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    i, j, out = 0, 0, bytearray()
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
