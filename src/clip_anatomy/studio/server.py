"""The studio's web server: routes under /api/v1 that call `answers`, one page, and the checks that every request passes."""

import hmac
import io
import secrets
import tempfile
import zipfile
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from clip_anatomy import __version__
from clip_anatomy.errors import BadInput, ClipAnatomyError
from clip_anatomy.studio import answers
from clip_anatomy.studio.session import MOST_BYTES, Busy, Session

__all__ = ["check_host", "create_app"]

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
Text = Annotated[str, Field(max_length=300)]
Name = Annotated[str, Field(max_length=200)]
Part = Annotated[str, Field(max_length=2000)]


class Question(BaseModel):
    """A picture that was sent, texts, and parts that are replaced."""

    picture: Annotated[str, Field(max_length=64)]
    texts: Annotated[list[Text], Field(min_length=1, max_length=answers.MOST_TEXTS)]
    select: Part = ""
    by: str = "zero"


class MapQuestion(BaseModel):
    """A picture, texts, a method; of the decomposition, which heads."""

    picture: Annotated[str, Field(max_length=64)]
    texts: Annotated[list[Text], Field(min_length=1, max_length=answers.MOST_TEXTS)]
    method: Annotated[str, Field(max_length=40)] = "decomposition"
    heads: Part | None = None


class Replaced(BaseModel):
    """Parts that are replaced, by what."""

    select: Part = ""
    by: str = "mean"


def create_app(session: Session, *, host: str = "127.0.0.1", token: str | None = None, page: bool = True) -> FastAPI:
    """Make the web application.

    Args:
        session: the model, and perhaps a store.
        host: the address that it will be reached at; requests for other names are turned away (DNS rebinding).
        token: what requests must carry, as `?token=` once or in the header Authorization; None where only this machine can ask.
        page: also serve the page, not only the API.
    """
    app = FastAPI(
        title="clip-anatomy studio",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    cookie = secrets.token_urlsafe(16)

    @app.middleware("http")
    async def guard(request: Request, go_on: Any) -> Response:  # pyright: ignore[reportUnusedFunction]
        response = _refusal(request, host, token, cookie) or await go_on(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if token is not None and request.query_params.get("token") and response.status_code < 400:
            response.set_cookie("studio", cookie, httponly=True, samesite="strict")
        return response

    @app.exception_handler(ClipAnatomyError)
    async def refused(_: Request, error: ClipAnatomyError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        if isinstance(error, Busy):
            return JSONResponse({"error": str(error)}, 429, {"Retry-After": "1"})
        return JSONResponse({"error": str(error)}, 400)

    @app.get("/api/v1/model")
    def model() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Tell the model, its layers, heads and methods, and what the store is asked."""
        return answers.facts(session)

    @app.post("/api/v1/pictures")
    async def add(request: Request, name: Name = "picture") -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """Send a picture as the body of the request; its id names it afterwards."""
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > MOST_BYTES:
                break
        held = await run_in_threadpool(session.add, bytes(data), PurePath(name.replace("\\", "/")).name or "picture")
        return {"id": held.digest, "name": held.name}

    @app.get("/api/v1/pictures/{picture}")
    def picture_png(picture: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Return what the model saw of a picture."""
        return Response(session.picture(picture).png, media_type="image/png")

    @app.post("/api/v1/explain")
    def explain(question: Question) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Split the cosines of a picture and texts into parts, whole and with some parts replaced."""
        held = session.picture(question.picture)
        return answers.explained(session, held, tuple(question.texts), question.select, question.by)

    @app.post("/api/v1/heatmap")
    def heatmap(question: MapQuestion) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Say where in a picture texts are answered."""
        held = session.picture(question.picture)
        return answers.map_of(session, held, tuple(question.texts), question.method, question.heads)

    @app.get("/api/v1/heads")
    def heads() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Name every head, if the store has an atlas."""
        return answers.head_names(session)

    @app.post("/api/v1/ablate")
    def ablate(replaced: Replaced) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Measure accuracy on the store, average and of the worst group, with some parts replaced."""
        return session.run(lambda: answers.accuracy(session, replaced.select, replaced.by))

    @app.post("/api/v1/suspects")
    def suspects() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Find the heads that wrong answers hang on."""
        return answers.suspects(session)

    @app.post("/api/v1/edit")
    def edit(replaced: Replaced) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Return the edit as the files that `Edit.save` writes, zipped."""
        made = answers.edit_of(session, replaced.select, replaced.by)
        packed = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed, "w") as archive:
            made.save(Path(folder) / "edit.json")
            for path in sorted(Path(folder).iterdir()):
                archive.write(path, path.name)
        name = {"Content-Disposition": "attachment; filename=edit.zip"}
        return Response(packed.getvalue(), media_type="application/zip", headers=name)

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


def _refusal(request: Request, host: str, token: str | None, cookie: str) -> Response | None:
    """Refuse another Host (DNS rebinding), another Origin (a foreign page), and whoever lacks the token."""
    asked = request.headers.get("host", "")
    name = asked.rsplit(":", 1)[0] if not asked.endswith("]") else asked
    if name not in {*LOCAL, host}:
        return JSONResponse(
            {"error": f"this studio is not called {name[:80]!r}. Open the address that it printed"}, 403
        )
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != asked:
        return JSONResponse({"error": "this studio answers its own page only"}, 403)
    if token is None:
        return None
    given = request.query_params.get("token") or request.headers.get("authorization", "").removeprefix("Bearer ")
    if hmac.compare_digest(given, token) or hmac.compare_digest(request.cookies.get("studio", ""), cookie):
        return None
    return JSONResponse({"error": "the token is missing. Open the whole address that was printed"}, 401)


def check_host(host: str, token: str | None) -> None:
    """Refuse to listen to other machines without a token.

    Raises:
        BadInput: says what to type.
    """
    if host not in LOCAL and not token:
        raise BadInput(f"--host {host} can be reached by other machines. Type also: --token SECRET")
