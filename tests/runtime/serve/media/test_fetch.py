"""Downloads from a real server: bounded in size, time and redirects, and only ever from checked addresses."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
import zlib
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from console.errors import InputError
from runtime.serve.media import Media, MediaLimits
from runtime.serve.media.addresses import resolve_public

from .media_files import FILES, PLACE, data_uri, looked_up


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.path, self.headers["Host"]))
        with suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, "answer_" + self.path.strip("/").split("?")[0])()

    def log_message(self, *_):
        pass

    def send(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def answer_good(self):
        self.send(FILES["rgb.png"])

    def answer_moved(self):
        self.send(b"", 302, Location="/good?moved")

    def answer_loop(self):
        self.send(b"", 301, Location="/loop")

    def answer_away(self):
        self.send(b"", 307, Location="http://169.254.169.254/latest/meta-data")

    def answer_local(self):
        self.send(b"", 307, Location="file:///etc/passwd")

    def answer_missing(self):
        self.send(b"no", 404)

    def answer_promised(self):
        self.send(b"", Content_Length=1 << 40)

    def answer_endless(self):
        self.send(b"", Content_Length=None)
        while True:
            self.wfile.write(bytes(1 << 16))

    def answer_chunked(self):
        self.send(b"", Content_Length=None, Transfer_Encoding="chunked")
        while True:
            self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    def answer_short(self):
        self.send(FILES["rgb.png"], Content_Length=len(FILES["rgb.png"]) + 5)

    def answer_packed(self):
        self.send(zlib.compress(bytes(9)), Content_Encoding="deflate")

    def answer_slow(self):
        self.send(b"", Content_Length=1000)
        self.drip()

    def answer_slow_header(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
        self.drip()

    def answer_garbage(self):
        self.wfile.write(b"\x00\xff garbage\r\n\r\n")

    def drip(self):
        for _ in range(100):
            self.wfile.write(b"a")
            self.wfile.flush()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def media_of(server, **limits):
    """Media whose only domain, a name that no one looks up, is at the test's server."""
    port = server.server_address[1]
    return Media(MediaLimits(**limits), (f"pictures.test:{port}",), lambda host, _: ["127.0.0.1"])


def url_of(server, path):
    return f"http://pictures.test:{server.server_address[1]}/{path}"


@pytest.mark.parametrize("path", ["good", "moved"])
def test_a_picture_is_fetched(server, path):
    server.seen.clear()
    image = media_of(server).image(url_of(server, path), PLACE)
    assert image.tobytes() == Media().image(data_uri(FILES["rgb.png"]), PLACE).tobytes()
    port = server.server_address[1]
    paths = ["/moved", "/good?moved"] if path == "moved" else ["/good"]
    assert server.seen == [(path, f"pictures.test:{port}") for path in paths]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("loop", "is redirected more than 3 times"),
        ("away", "169.254.169.254 is not a domain that this server may fetch from"),
        ("local", "is neither a data URI nor an http or https URL"),
        ("missing", "cannot be downloaded (status 404)"),
        ("promised", "has more than 100000 bytes"),
        ("endless", "has more than 100000 bytes"),
        ("chunked", "has more than 100000 bytes"),
        ("short", "bytes"),
        ("packed", "comes compressed"),
        ("garbage", "cannot be downloaded"),
    ],
)
def test_a_bad_answer_is_one_line(server, path, message):
    with pytest.raises(InputError) as raised:
        media_of(server, bytes=100_000).image(url_of(server, path), PLACE)
    assert str(raised.value).startswith(f"{PLACE}: ")
    assert message in str(raised.value)


@pytest.mark.parametrize("path", ["slow", "slow_header"])
def test_a_slow_server_is_given_up_at_the_deadline(server, path):
    """Each read alone is fast."""
    started = time.monotonic()
    with pytest.raises(InputError, match=r"took more than 0\.4 seconds"):
        media_of(server, seconds=0.4).image(url_of(server, path), PLACE)
    assert 0.3 < time.monotonic() - started < 2


def test_the_address_is_looked_up_once_a_hop_and_that_one_is_asked(server):
    """A name that changes between check and use (DNS rebinding) changes nothing."""
    port, asked = server.server_address[1], []

    def resolve(host, port):
        asked.append(host)
        return ["127.0.0.1"] if len(asked) <= 2 else ["192.0.2.1"]

    media = Media(domains=(f"pictures.test:{port}",), resolve=resolve)
    media.image(url_of(server, "moved"), PLACE)
    assert asked == ["pictures.test", "pictures.test"]


def test_a_redirect_to_a_private_address_is_refused(server):
    port, looks = server.server_address[1], iter([["127.0.0.1"], None])

    def resolve(host, port):
        return next(looks) or resolve_public(host, port, looked_up("10.0.0.1"))

    media = Media(domains=(f"pictures.test:{port}",), resolve=resolve)
    with pytest.raises(InputError, match=r"pictures\.test is not at a public address"):
        media.image(url_of(server, "moved"), PLACE)


def test_no_server_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    media = Media(domains=(f"pictures.test:{port}",), resolve=lambda *_: ["127.0.0.1"])
    with pytest.raises(InputError, match=r"image_url: cannot be downloaded \(.*refused\)"):
        media.image(f"http://pictures.test:{port}/", PLACE)


def test_tls_checks_the_certificate_of_the_name(server):
    port = server.server_address[1]
    with pytest.raises(InputError, match=r"image_url: cannot be downloaded \("):
        media_of(server).image(f"https://pictures.test:{port}/good", PLACE)


@pytest.fixture
def secure_server(tmp_path, monkeypatch):
    """The same server with TLS, a certificate of pictures.test that downloads trust, and the names clients ask for."""
    openssl = shutil.which("openssl") or pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=pictures.test", "-addext", "subjectAltName=DNS:pictures.test"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    made = [openssl, "req", *kind, "-keyout", key, "-out", certificate, *names]
    subprocess.run(made, check=True, capture_output=True)
    context, asked = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda _, name, __: asked.append(name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.asked = [], asked
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setattr("runtime.serve.media.fetch._tls", lambda: ssl.create_default_context(cafile=certificate))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_https_goes_to_the_checked_address_under_the_hosts_name(secure_server):
    port = secure_server.server_address[1]
    media = media_of(secure_server)
    image = media.image(f"https://pictures.test:{port}/good", PLACE)
    assert image.tobytes() == Media().image(data_uri(FILES["rgb.png"]), PLACE).tobytes()
    assert (secure_server.asked, secure_server.seen) == (["pictures.test"], [("/good", f"pictures.test:{port}")])
    other = Media(domains=(f"other.test:{port}",), resolve=lambda *_: ["127.0.0.1"])
    with pytest.raises(InputError, match=r"cannot be downloaded \(.*Hostname mismatch"):
        other.image(f"https://other.test:{port}/good", PLACE)
