"""The studio's web server: the API of `routes`, one page, and the checks that every request passes."""

import hmac
import secrets
import socket
import time
from asyncio import CancelledError
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clip_anatomy import __version__
from clip_anatomy.errors import BadInput, ClipAnatomyError
from clip_anatomy.studio.jobs import Jobs
from clip_anatomy.studio.prometheus_metrics import Metrics
from clip_anatomy.studio.routes import router
from clip_anatomy.studio.session import Busy, Session
from clip_anatomy.studio.store_answers import jobs_of

__all__ = ["check_host", "create_app", "listen"]

HERE = files("clip_anatomy.studio")
LOCAL = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create_app(session: Session, *, host: str = "127.0.0.1", token: str | None = None, page: bool = True) -> FastAPI:
    """Make the web application.

    Args:
        session: the model, and perhaps a store.
        host: the address that it will be reached at; requests for other names are turned away (DNS rebinding).
        token: what requests must carry, as `?token=` once or in the header Authorization; None where only this machine can ask.
        page: also serve the page, not only the API.
    """
    jobs = Jobs(jobs_of(session) if session.store is not None else {}, session.store.path if session.store else None)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await run_in_threadpool(jobs.close)  # a job that runs is done again by the next start

    app = FastAPI(
        title="clip-anatomy studio",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        lifespan=running,
    )
    app.state.session, app.state.jobs = session, jobs
    metrics = Metrics(session, jobs)
    app.add_middleware(_Guard, host=host, token=token, metrics=metrics)

    @app.exception_handler(ClipAnatomyError)
    async def refused(_: Request, error: ClipAnatomyError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        if isinstance(error, Busy):
            return JSONResponse({"error": str(error)}, 429, {"Retry-After": "1"})
        return JSONResponse({"error": str(error)}, 400)

    app.include_router(router)

    @app.get("/metrics", include_in_schema=False)
    def measured() -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    if page:
        index = HERE.joinpath("static", "index.html").read_text("utf-8")

        @app.get("/", response_class=HTMLResponse, include_in_schema=False)
        def home() -> str:  # pyright: ignore[reportUnusedFunction]
            return index

        @app.get("/favicon.ico", include_in_schema=False)
        def icon() -> Response:  # pyright: ignore[reportUnusedFunction]
            return Response(status_code=204)

        app.mount("/static", StaticFiles(directory=str(HERE.joinpath("static"))))
    return app


class _Guard:
    """Turn away who may not ask; put the headers on every answer, count it; end a request that is cut off with an answer, not a traceback."""

    def __init__(self, app: ASGIApp, *, host: str, token: str | None, metrics: Metrics) -> None:
        self.app, self.host, self.token, self.metrics = app, host, token, metrics
        self.cookie = secrets.token_urlsafe(16)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        started, began = False, time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if self.token is not None and request.query_params.get("token") and message["status"] < 400:
                    headers.append("set-cookie", f"studio={self.cookie}; HttpOnly; Path=/; SameSite=strict")
                route = getattr(scope.get("route"), "path", "other")  # of a route, so that there are only so many
                self.metrics.answered(route, message["status"], time.perf_counter() - began)
            await send(message)

        refused = _refusal(request, self.host, self.token, self.cookie)
        try:
            await (refused or self.app)(scope, receive, answer)
        except CancelledError:  # the server stops while somebody still sends
            if not started:
                await JSONResponse({"error": "the studio stops"}, 503)(scope, receive, answer)


def listen(host: str, port: int) -> socket.socket:
    """Listen at an address; answers leave at once, where the kernel would hold a second packet back for 40 ms.

    asyncio sees to that for sockets of its own alone.

    Raises:
        OSError: the address is taken, or not this machine's.
    """
    listening = socket.create_server((host, port))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is accepted inherits it
    return listening


def _refusal(request: Request, host: str, token: str | None, cookie: str) -> Response | None:
    """Refuse another Host (DNS rebinding), another Origin (a foreign page), and whoever lacks the token."""
    host_header = request.headers.get("host", "")
    name = host_header.rsplit(":", 1)[0] if not host_header.endswith("]") else host_header
    if name not in {*LOCAL, host}:
        return JSONResponse(
            {"error": f"this studio is not called {name[:80]!r}. Open the address that it printed"}, 403
        )
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host_header:
        return JSONResponse({"error": "this studio answers its own page only"}, 403)
    if token is None:
        return None
    given = request.query_params.get("token") or request.headers.get("authorization", "").removeprefix("Bearer ")
    if _same(given, token) or _same(request.cookies.get("studio", ""), cookie):
        return None
    return JSONResponse({"error": "the token is missing. Open the whole address that was printed"}, 401)


def _same(given: str, secret: str) -> bool:
    """Compare in constant time; bytes, because the function refuses letters that are not ASCII."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


def check_host(host: str, token: str | None) -> None:
    """Refuse to listen to other machines without a token.

    Raises:
        BadInput: says what to type.
    """
    if host not in LOCAL and not token:
        raise BadInput(f"host={host!r} can be reached by other machines. Type also: token=SECRET")
