"""A real HTTP server on this machine that speaks, and breaks, the chat-completions protocol."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]


def said(text: str, tokens_in: int = 20, tokens_out: int = 5) -> Reply:
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    body = {"id": "x", "object": "chat.completion", "usage": usage}
    body |= {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]}
    return 200, {}, json.dumps(body).encode()


class Server(ThreadingHTTPServer):
    """Answers the n-th request with the n-th reply (the last one for ever), or as a function says; keeps what came in."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Reply | float] = [said("hello")]
        self.answer: Callable[[str], str] | None = None
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        at = len(self.server.seen)
        self.server.seen.append((self.path, dict(self.headers), body))
        if self.server.answer is not None:
            reply = said(self.server.answer(body["messages"][-1]["content"]))
        else:
            reply = self.server.replies[min(at, len(self.server.replies) - 1)]
        if isinstance(reply, float):
            time.sleep(reply)
            return
        code, headers, raw = reply
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(raw))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def serving() -> Iterator[Server]:
    """A server that is up for as long as it is needed."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()
