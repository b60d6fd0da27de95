"""The one place that decides whether anything may be fetched, and how much of an answer is waited for and read.

What a person names may be fetched: an address with `--allow-urls`, a model of a hub, a language model. What a folder, a store or
an edit names is looked for on this machine only, whatever their files say, unless `allow_network` (`--allow-network`) is on.
"""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["TooLargeError", "allow_network", "may_fetch", "named_by_a_file", "opener", "reaching", "read_bounded"]

_ALLOWED = ContextVar("allowed", default=False)
_ONLY_LOCAL = ContextVar("only_local", default=False)
GRACE = 0.5  # seconds by which a connection outlives its limit, so that the wait on it that is too long says so itself
_SWITCHING = threading.RLock()


@contextmanager
def allow_network() -> Generator[None]:
    """Let stores, edits, folders and lists of pictures fetch what they name, inside the block; on the command line: --allow-network.

    Example:
        >>> may_fetch(requested=False)
        False
        >>> with allow_network():
        ...     may_fetch(requested=False)
        True
    """
    before = _ALLOWED.set(True)
    try:
        yield
    finally:
        _ALLOWED.reset(before)


@contextmanager
def named_by_a_file() -> Generator[None]:
    """Treat everything that is opened inside as named by a file (a store, an edit) and not by a person: it is not fetched unasked."""
    before = _ONLY_LOCAL.set(True)
    try:
        yield
    finally:
        _ONLY_LOCAL.reset(before)


def may_fetch(*, requested: bool) -> bool:
    """Tell whether something may be fetched now.

    Args:
        requested: whether a person named it, as far as its reader can tell.
    """
    return _ALLOWED.get() or (requested and not _ONLY_LOCAL.get())


@contextmanager
def reaching(*, requested: bool) -> Generator[None]:
    """Run libraries of the hub inside, which find what was downloaded before, and fetch only what may be fetched.

    Args:
        requested: as for `may_fetch`.
    """
    if may_fetch(requested=requested) or find_spec("huggingface_hub") is None:
        yield
        return
    known: Any = import_module("huggingface_hub.constants")  # asked before every request, by all libraries that use it
    with _SWITCHING:
        before, known.HF_HUB_OFFLINE = known.HF_HUB_OFFLINE, True
        try:
            yield
        finally:
            known.HF_HUB_OFFLINE = before


class TooLargeError(Exception):
    """An answer of more bytes than are read."""


def opener(seconds: float, *handlers: Any) -> Any:
    """Make an opener of urllib for http and https alone, each of whose connections ends after some seconds, however the server drips.

    Args:
        seconds: for a whole connection, from its first byte to its last.
        handlers: besides those for the two schemes, for proxies and for errors.
    """
    # Only whoever asks for an address pays for importing ssl and its friends.
    from http.client import HTTPConnection, HTTPSConnection
    from urllib import request

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            _cut_off(self.sock, seconds)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            _cut_off(self.sock, seconds)

    class OverHttp(request.HTTPHandler):
        def http_open(self, req: request.Request) -> Any:
            return self.do_open(Plain, req)

    class OverHttps(request.HTTPSHandler):
        def https_open(self, req: request.Request) -> Any:
            return self.do_open(Secure, req)

    # The default opener also reads file:// and ftp://: an address must not reach this machine's files.
    made = request.OpenerDirector()
    common = (request.ProxyHandler, request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor, request.UnknownHandler)
    for handler in (OverHttp(), OverHttps(), *(kind() for kind in common), *handlers):
        made.add_handler(handler)
    return made


def read_bounded(answer: Any, largest: int, deadline: float) -> bytes:
    """Read the body of an answer.

    Args:
        answer: of an `opener`.
        largest: bytes; a longer one is given up as soon as this is known.
        deadline: on the clock `time.monotonic`, for the whole of it.

    Raises:
        TooLargeError: it is longer.
        TimeoutError: it takes longer.
        OSError: it ends early.
    """
    try:
        promised = int(answer.headers.get("Content-Length") or 0)
    except ValueError:
        promised = 0
    if promised > largest:
        raise TooLargeError(promised)
    data = bytearray()
    while chunk := answer.read1(2**16):
        data += chunk
        if len(data) > largest:
            raise TooLargeError(len(data))
        if time.monotonic() > deadline:
            break
    if time.monotonic() > deadline:  # also where the connection was cut off
        raise TimeoutError("not finished in time")
    if len(data) < promised:
        raise OSError(f"the connection ended after {len(data):,} of {promised:,} bytes")
    return bytes(data)


def _cut_off(sock: Any, seconds: float) -> None:
    """Shut a connection down after some seconds; a server that sends a byte now and then would keep it for ever."""
    import socket
    from weakref import ref

    def shut() -> None:
        if (alive := kept()) is not None:
            with suppress(OSError):  # closed since
                alive.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds + GRACE, shut)
    timer.daemon = True
    kept = ref(sock, lambda _: timer.cancel())
    timer.start()
