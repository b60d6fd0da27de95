"""Pictures by address: only if asked, only http(s), never too long or too much. The server is a real one."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from pictures import SMALL, encoded, picture, usable

from clip_anatomy.errors import BadImage
from clip_anatomy.images import fetch as fetch_module
from clip_anatomy.images.fetch import fetch
from clip_anatomy.images.pixels import prepare, read_image

PAGES = {
    "/good.png": (200, {}, encoded(picture(), "PNG")),
    "/page.html": (200, {}, b"<html>no picture</html>"),
    "/large.png": (200, {"Content-Length": str(2**40)}, b""),
    "/endless.png": (200, {"Content-Length": None}, bytes(3 * 2**20)),
    "/cut.png": (200, {"Content-Length": "5000"}, b"\x89PNG"),
    "/gone.png": (404, {}, b""),
    "/moved.png": (302, {"Location": "/good.png"}, b""),
    "/to_file.png": (302, {"Location": "file:///etc/hostname"}, b""),
    "/to_ftp.png": (302, {"Location": "ftp://127.0.0.1/x.png"}, b""),
    "/loop.png": (302, {"Location": "/loop.png"}, b""),
}


class Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow.png":
            threading.Event().wait(1.5)
            return
        status, headers, body = PAGES[self.path]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that gives up is what some tests are about
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as address:
        yield address


def test_an_address_is_fetched_only_if_asked(server):
    for source in (f"{server}/good.png", f"{server}/moved.png"):
        with pytest.raises(BadImage, match=r"none is fetched unless asked. Type: allow_urls=True"):
            prepare(source, SMALL)
        assert torch.equal(prepare(source, SMALL, allow_urls=True), prepare(picture(), SMALL))
        assert np.array_equal(np.asarray(read_image(source, allow_urls=True)), np.asarray(picture()))
    places, _, failed = usable([f"{server}/good.png", f"{server}/gone.png"], allow_urls=True)
    assert (places, [name for name, _ in failed]) == ((0,), [f"{server}/gone.png"])


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("/gone.png", r"the server answered 404 Not Found. Type an address that opens in a browser"),
        ("/page.html", r"not a picture that can be read here"),
        (
            "/large.png",
            r"1,099,511,627,776 bytes or more, and a fetched picture may have 67,108,864. Download the file",
        ),
        ("/cut.png", r"the connection ended after 4 of 5,000 bytes.*download the file and type its path"),
        ("/to_file.png", r"the server answered 302"),
        ("/to_ftp.png", r"cannot be fetched.*ftp"),
        ("/loop.png", r"the server answered 302 .*infinite loop"),
        ("/with space.png", r"cannot be fetched"),
    ],
)
def test_an_address_that_gives_no_picture(server, page, message):
    with pytest.raises(BadImage, match=r"(?s)" + message) as caught:
        read_image(server + page, allow_urls=True)
    assert page in str(caught.value)


def test_too_much_and_too_slow(server, monkeypatch):
    with pytest.raises(BadImage, match=r"bytes or more, and a fetched picture may have 1,048,576"):
        fetch(f"{server}/endless.png", largest=2**20)
    with pytest.raises(BadImage, match=r"cannot be fetched \(.*timed out"):
        fetch(f"{server}/slow.png", timeout=0.2)
    ticks = iter([0.0, *[1000.0] * 1000])
    monkeypatch.setattr(fetch_module.time, "monotonic", lambda: next(ticks))
    with pytest.raises(BadImage, match=r"not finished after 15 s"):
        fetch(f"{server}/good.png")


@pytest.mark.parametrize(
    "address", ["ftp://host/x.png", "file:///etc/hostname", "s3://bucket/x.png", "data:image/png;base64,iVBORw0KGgo="]
)
def test_other_schemes_are_never_opened(address):
    with pytest.raises(BadImage, match=r"Type: allow_urls=True|only http and https"):
        read_image(address)
    with pytest.raises(
        BadImage, match=r"only http and https addresses are fetched. Download the file and type its path"
    ):
        read_image(address, allow_urls=True)


def test_nobody_listens(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as address:
        pass
    with pytest.raises(BadImage, match=r"cannot be fetched \(.*refused"):
        read_image(f"{address}/good.png", allow_urls=True)
