"""The studio's API: one route for each public function, under /api/v1, by the same names."""

import io
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.studio import answers, store_answers
from clip_anatomy.studio.jobs import Jobs
from clip_anatomy.studio.session import MOST_BYTES, Session

__all__ = ["router"]

LARGEST = 2**31  # of a number in a request
Text = Annotated[str, Field(max_length=300)]
Name = Annotated[str, Field(max_length=200)]
Part = Annotated[str, Field(max_length=2000)]
Digest = Annotated[str, Field(max_length=64)]
Number = Annotated[int, Field(ge=0, le=LARGEST)]
AtNumber = Annotated[int, InPath(ge=0, le=LARGEST)]
MapName = Annotated[str, Field(max_length=40)]


class PictureTexts(BaseModel):
    """A picture that was sent, and texts."""

    picture: Digest
    texts: Annotated[list[Text], Field(min_length=1, max_length=answers.MOST_TEXTS)]


class ExplainQuestion(PictureTexts):
    """Also parts that are replaced, by what."""

    select: Part = ""
    by: MapName = "zero"
    effect: MapName = "direct"


class MapQuestion(PictureTexts):
    """Also a method; of the decomposition, which heads."""

    method: MapName = "decomposition"
    heads: Part | None = None


class PatchQuestion(PictureTexts):
    """Also a patch of the map."""

    row: Number
    col: Number


class PairsQuestion(BaseModel):
    """A picture that was sent, and one text."""

    picture: Digest
    text: Text


class SegmentQuestion(PictureTexts):
    """Also a method, a rule of the cut (or a share of the map's range), and whether masks follow the picture's edges."""

    method: MapName = "decomposition"
    threshold: Annotated[float, Field(ge=0, le=1)] | MapName = "lenient"
    refine: bool = True


class SearchQuestion(BaseModel):
    """A text, a picture that was sent, or the place of a stored image; which heads compare, and how."""

    text: Text = ""
    picture: Digest = ""
    image: Number | None = None
    heads: Part = "auto"
    mode: MapName = "heads"
    k: Annotated[int, Field(ge=1, le=store_answers.MOST_HITS)] = 24


class Replaced(BaseModel):
    """Parts that are replaced, by what."""

    select: Part = ""
    by: MapName = "mean"
    effect: MapName = "direct"


class JobQuestion(Replaced):
    """Which long work: ablate, atlas, index or repair; of ablate also which parts, and of how many images (null: all)."""

    verb: MapName
    images: Annotated[int, Field(ge=1, le=LARGEST)] | None = answers.SAMPLE


def _session(request: Request) -> Session:
    return request.app.state.session


def _jobs(request: Request) -> Jobs:
    return request.app.state.jobs


Held = Annotated[Session, Depends(_session)]
Queue = Annotated[Jobs, Depends(_jobs)]
router = APIRouter(prefix="/api/v1")


@router.get("/model")
def model(session: Held) -> dict[str, Any]:
    """Tell the model, its layers, heads and methods, and what the store is asked."""
    return answers.facts(session)


@router.post("/pictures")
async def pictures(request: Request, session: Held, name: Name = "picture") -> dict[str, str]:
    """Send a picture as the body of the request; its id names it afterwards."""
    data = bytearray()
    try:
        async for piece in request.stream():
            data += piece
            if len(data) > MOST_BYTES:
                break
    except ClientDisconnect:
        raise BadInput(f"the picture ended after {len(data)} bytes. Send it again") from None
    held = await run_in_threadpool(session.add, bytes(data), PurePath(name.replace("\\", "/")).name or "picture")
    return {"id": held.digest, "name": held.name}


@router.get("/pictures/{picture}", response_class=Response)
def picture_png(session: Held, picture: Annotated[str, InPath(max_length=64)]) -> Response:
    """Return what the model saw of a picture."""
    return Response(session.picture(picture).png, media_type="image/png")


@router.post("/explain")
def explain(session: Held, question: ExplainQuestion) -> dict[str, Any]:
    """Split the cosines of a picture and texts into parts, whole and with some parts replaced."""
    held = session.picture(question.picture)
    edit = answers.edit_of(session, question.select, question.by, question.effect)
    return answers.explained(session, held, tuple(question.texts), edit)


@router.post("/heatmap")
def heatmap(session: Held, question: MapQuestion) -> dict[str, Any]:
    """Say where in a picture texts are answered."""
    held = session.picture(question.picture)
    return answers.map_of(session, held, tuple(question.texts), question.method, question.heads)


@router.post("/patch")
def patch(session: Held, question: PatchQuestion) -> dict[str, Any]:
    """Say what every head read from one patch."""
    held = session.picture(question.picture)
    return answers.patch_of(session, held, tuple(question.texts), question.row, question.col)


@router.post("/pairs")
def pairs(session: Held, question: PairsQuestion) -> dict[str, Any]:
    """Say which patches every word of a text meets: shares of the cosine."""
    return answers.paired(session, session.picture(question.picture), question.text)


@router.post("/segment")
def segment(session: Held, question: SegmentQuestion) -> dict[str, Any]:
    """Say which pixels belong to which text: runs of equal labels, row by row; 0 is none of them."""
    held = session.picture(question.picture)
    return answers.segmented(
        session, held, tuple(question.texts),
        method=question.method, threshold=question.threshold, refine=question.refine,
    )  # fmt: skip


@router.get("/atlas")
def atlas(session: Held, words: Text = "") -> dict[str, Any]:
    """Name every head, if the store has an atlas; or those whose texts hold some words."""
    return store_answers.atlas_of_heads(session, words)


@router.get("/atlas/{part}")
def atlas_head(session: Held, part: Annotated[str, InPath(max_length=20)]) -> dict[str, Any]:
    """Tell all that is known of one head, `layer.head`: texts with uncertainty, images at either end of each."""
    return store_answers.head_of(session, part)


@router.post("/search")
def search(session: Held, question: SearchQuestion) -> dict[str, Any]:
    """Find images of the store like a text, a picture or another image of it, and say why."""
    query = _one_query(session, question)
    return store_answers.like(session, query, question.heads, question.mode, question.k)


def _one_query(session: Session, question: SearchQuestion) -> Any:
    if question.picture:
        return session.picture(question.picture)
    if question.image is not None:
        return store_answers.stored_query(session, question.image)
    return f"text:{question.text}"


@router.get("/images/{at}", response_class=Response)
def image_png(session: Held, at: AtNumber) -> Response:
    """Return a small copy of an image of the store."""
    small = store_answers.thumbnail(session, at)
    return Response(small, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


@router.post("/images/{at}")
def image_taken(session: Held, at: AtNumber) -> dict[str, str]:
    """Take an image of the store among the pictures, to explain it."""
    held = store_answers.picture_from(session, at)
    return {"id": held.digest, "name": held.name}


@router.post("/ablate")
def ablate(session: Held, replaced: Replaced) -> dict[str, Any]:
    """Measure accuracy on the store, average and of the worst group, with some parts replaced; a re-run is a job."""
    if replaced.effect != "direct":
        raise BadSpec(f"effect={replaced.effect!r}: pictures are run again as a job. POST /api/v1/jobs: verb=ablate")
    return session.run(lambda: store_answers.accuracy(session, replaced.select, replaced.by))


@router.post("/edit", response_class=Response)
def edit(session: Held, replaced: Replaced) -> Response:
    """Return the edit as the files that `Edit.save` writes, zipped."""
    made = answers.edit_of(session, replaced.select, replaced.by, replaced.effect)
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed, "w") as archive:
        made.save(Path(folder) / "edit.json")
        for path in sorted(Path(folder).iterdir()):
            archive.write(path, path.name)
    name = {"Content-Disposition": "attachment; filename=edit.zip"}
    return Response(packed.getvalue(), media_type="application/zip", headers=name)


@router.get("/jobs")
def jobs(queue: Queue) -> dict[str, Any]:
    """List long work, the latest first."""
    return {"verbs": list(queue.verbs), "jobs": [asdict(job) for job in queue.all()]}


@router.post("/jobs", status_code=202)
def start_job(queue: Queue, question: JobQuestion) -> dict[str, Any]:
    """Start long work: ablate (accuracies of a re-run), atlas (names the heads), index (new images), repair (what misleads)."""
    given = question.model_dump(exclude={"verb"}) if question.verb == "ablate" else {}
    return asdict(queue.start(question.verb, given))


@router.get("/jobs/{number}")
def job(queue: Queue, number: AtNumber) -> dict[str, Any]:
    """Tell how far a job is."""
    return asdict(queue.job(number))


@router.delete("/jobs/{number}")
def cancel_job(queue: Queue, number: AtNumber) -> dict[str, Any]:
    """Stop a job; what it finished stays."""
    return asdict(queue.cancel(number))
