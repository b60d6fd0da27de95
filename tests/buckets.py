"""A real S3 server that starts here (moto's), and a forwarder in front of it that fails as networks and servers do."""

import threading
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from clip_anatomy import objects

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
XML = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message></Error>'


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server_of = pytest.importorskip("moto.server").ThreadedMotoServer
        import logging

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = server_of(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path, request) -> str:
    """An empty bucket, with everything set to reach it, and an empty cache."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("CLIP_ANATOMY_CACHE", str(tmp_path / "cache"))
    bucket = f"b{abs(hash(request.node.nodeid)) % 10**12}"
    ask = urllib.request.Request(f"{s3_server}/{bucket}", method="PUT")
    assert urllib.request.urlopen(ask).status == 200
    return f"s3://{bucket}"


@pytest.fixture
def few_retries(monkeypatch) -> Iterator[None]:
    """Give up soon: three retries instead of ten."""
    monkeypatch.setattr(objects, "RETRIES", 3)
    objects._opened.cache_clear()
    yield
    objects._opened.cache_clear()


class Proxy(ThreadingHTTPServer):
    """Forward every request to a server, but for those that `fault` says something of.

    Attributes:
        fault: (method, path, how many of that method came before) → None to forward; an HTTP status and a code of S3 to answer; "cut upload"
            (half of it is read, and the connection closed), "lose answer" (it is forwarded, and nothing said), "cut download".
        asked: requests by method.
        deciding: held by conditional puts, one after the other as on S3: moto looks and puts in two steps.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forwarder)
        self.target = target.removeprefix("http://")
        self.fault: Callable[[str, str, int], Any] = lambda *_: None
        self.asked = Counter[str]()
        self.lock, self.deciding = threading.Lock(), threading.Lock()

    def handle_error(self, *_: Any) -> None:
        """Say nothing: connections are cut on purpose."""


class _Forwarder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: Any) -> None:
        pass

    def _forward(self) -> None:
        with self.server.lock:
            fault = self.server.fault(self.command, self.path, self.server.asked[self.command])
            self.server.asked[self.command] += 1
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "cut upload":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if isinstance(fault, tuple):
            status, code = fault
            self._answer(status, {"Content-Type": "application/xml"}, XML.format(code, f"{code} on purpose").encode())
            return
        conditional = self.headers.get("If-None-Match") or self.headers.get("If-Match")
        with self.server.deciding if conditional else nullcontext():
            connection = HTTPConnection(self.server.target)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
        if fault == "lose answer":
            self.close_connection = True
            return
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in ("transfer-encoding", "connection", "content-length")}  # fmt: skip
        promised = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self._answer(answer.status, {**kept, "Content-Length": promised or "0"}, content, cut=fault == "cut download")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True


@pytest.fixture
def proxy(s3, s3_server, monkeypatch) -> Iterator[Proxy]:
    """A forwarder that everything goes through from now on."""
    server = Proxy(s3_server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield server
    server.shutdown()
    server.server_close()
