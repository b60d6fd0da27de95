"""From picture names to answers to files: what `explain` and `demo` share."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from clip_anatomy import __version__
from clip_anatomy.atomic_output import MARK, REPORT, SCHEMA, Staging, as_json, slug, staged
from clip_anatomy.errors import BadImage
from clip_anatomy.loading.clip import Clip
from clip_anatomy.progress import note, progress
from clip_anatomy.report.cli_wording import said_here
from clip_anatomy.report.explain_page import ExplainedPicture, explain_page
from clip_anatomy.report.shown_picture import label_of, open_picture
from clip_anatomy.report.typed_texts import Question, shorten
from clip_anatomy.split.explanation import answer, signed, sink, to_dict


class Source(NamedTuple):
    """One picture to look at.

    Attributes:
        path: where it is.
        label: what it is called in reports; "" for the path itself.
        caption: what is known about it.
    """

    path: str
    label: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Found:
    """What came of some pictures and texts.

    Attributes:
        clip: the model that was asked.
        questions: the texts.
        answered: pictures that could be read, in order.
        failed: name and error of the others.
        notes: what a reader must know before believing a number.
    """

    clip: Clip
    questions: tuple[Question, ...]
    answered: tuple[ExplainedPicture, ...]
    failed: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()


def look(
    clip: Clip,
    sources: Sequence[Source],
    questions: Sequence[Question],
    *,
    allow_urls: bool = False,
    notes: Sequence[str] = (),
) -> Found:
    """Ask every picture every text. One that cannot be read is noted, and the others are done.

    Args:
        clip: an opened model.
        sources: the pictures (addresses if allowed).
        questions: the texts.
        allow_urls: fetch http(s) addresses.
        notes: what a reader must know before believing a number.

    Returns:
        What was found.

    Raises:
        BadImage: none of the pictures could be read.
    """
    texts = clip.encode_text([question.text for question in questions])
    answered: list[ExplainedPicture] = []
    failed: list[tuple[str, str]] = []
    with progress("looking at pictures", len(sources)) as step:
        for source in sources:
            try:
                picture, pixels = open_picture(source.path, clip, allow_urls=allow_urls)
                picture = replace(picture, label=source.label or picture.label)
                answered.append(ExplainedPicture(picture, answer(clip, clip.pixels(pixels), texts)[0], source.caption))
            except BadImage as e:
                failed.append((label_of(source.path), said_here(str(e))))
            step()
    if not answered:
        if len(failed) == 1:
            raise BadImage(failed[0][1])
        for _, error in failed:
            note(f"not read: {error}")
        raise BadImage(f"none of the {len(failed)} pictures could be read. Type the paths of pictures: photo.jpg")
    return Found(clip, tuple(questions), tuple(answered), tuple(failed), tuple(notes))


def as_dict(found: Found, files: Sequence[str] = ()) -> dict[str, Any]:
    """Everything found, ready for JSON."""
    clip = found.clip
    texts = [question.text for question in found.questions]
    return {
        "schema": SCHEMA,
        "version": __version__,
        "model": {
            "name": clip.name,
            "digest": clip.digest,
            "layers": clip.vision.layers,
            "heads": clip.vision.heads,
            "logit_scale": clip.logit_scale,
            "logit_bias": clip.logit_bias,
            "preprocess": clip.preprocess.to_dict(),
            "proof": None if clip.proof is None else vars(clip.proof),
        },
        "convention": "centered",
        "notes": list(found.notes),
        "texts": [{"text": question.text, "notes": list(question.notes)} for question in found.questions],
        "failed": [{"image": name, "error": error} for name, error in found.failed],
        "files": list(files),
        "images": [
            {
                "image": each.picture.label,
                "caption": each.caption,
                "width": each.picture.size[0],
                "height": each.picture.size[1],
                "seen": [round(edge, 3) for edge in each.picture.seen],
                "sink": sink(each.answer),
                "texts": to_dict(each.answer, texts),
            }
            for each in found.answered
        ],
    }


def write(found: Found, staging: Staging, title: str) -> None:
    """Draw every picture and text, and write report and numbers into the staging folder.

    Args:
        found: what to tell.
        staging: an entered staging folder.
        title: the report's headline.
    """
    from clip_anatomy.report.explain_figure import draw

    files: list[str] = []
    count = len(found.questions)
    with progress("drawing", len(found.answered) * count) as step:
        for i, each in enumerate(found.answered):
            for k, question in enumerate(found.questions):
                name = f"{i:03d}-{slug(Path(each.picture.label).stem)}-{k:02d}-{slug(question.text)}.png"
                caption = f"{Path(each.picture.label).name} · {found.clip.name}"
                staging.write(name, draw(each.picture, each.answer, k, question.text, caption))
                files.append(name)
                step()
    staging.write(MARK, as_json(as_dict(found, [*files, REPORT])))
    page = explain_page(
        title, found.answered, found.questions, facts(found.clip), notes=found.notes, failed=found.failed
    )
    staging.write(REPORT, page)


@contextmanager
def report_in(folder: Path | None) -> Generator[Staging | None]:
    """A staging folder for a report, or None where none was asked for. What is missing is said before any work is done."""
    if folder is None:
        yield None
        return
    from clip_anatomy.report.figures import need_matplotlib

    need_matplotlib()
    with staged(folder) as staging:
        yield staging


def tell(found: Found, folder: Path | None, *, json: bool) -> None:
    """Print the notes, then the tables or all numbers as JSON, then where the report lies."""
    tell_notes(found)
    if json:
        print(as_json(as_dict(found)), end="")
    else:
        table(found)
    if folder is not None:
        note(f"report: {folder / REPORT}")


def facts(clip: Clip) -> list[tuple[str, str]]:
    """Name and value of what is needed to make a report again."""
    tower, pre = clip.vision, clip.preprocess
    rows, cols = pre.size
    proof = "skipped"
    if clip.proof is not None:
        proof = f"same as {clip.proof.against} on a random picture ({clip.proof.image:.0e}) and text ({clip.proof.text:.0e}, relative)"
    return [
        ("model", clip.name),
        ("weights", clip.digest),
        (
            "image tower",
            f"{tower.layers} layers × {tower.heads} heads of {tower.d}, {rows} × {cols} pixels, patch {clip.patch[0]}",
        ),
        ("preprocessing", f"{pre.resize}, {pre.interpolation}, crop {pre.crop}, mean {pre.mean}, std {pre.std}"),
        ("logit scale", f"{clip.logit_scale:.4g}"),
        ("parity with the host library", proof),
        ("clip-anatomy", __version__),
    ]


def table(found: Found) -> None:
    """Print for each picture the texts, best first, with the loudest voices."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    names = [shorten(question.text, 46) for question in found.questions]
    for each in found.answered:
        whole = each.answer
        shown = whole if len(names) < 2 else whole.contrast()
        view = Table(title=Text(each.picture.label), title_justify="left", title_style="bold", pad_edge=False)
        view.add_column("text")
        view.add_column("cosine", justify="right")
        if shown.against:
            view.add_column("share", justify="right")
        view.add_column("loudest yes")
        view.add_column("loudest no")
        for k in whole.cosine.argsort(descending=True).tolist():
            voices = shown.voices(k)
            share = [f"{float(whole.probability[k]):.1%}"] if shown.against else []
            ends = [Text(f"{v.name} {v.signed}") for v in (voices[0], voices[-1])]
            view.add_row(Text(names[k]), signed(float(whole.cosine[k])), *share, *ends)
        console.print(view)
    if len(names) > 1:
        console.print(
            "share: softmax over these texts only. Loudest voices: for this text more than for the others.", style="dim"
        )


def tell_notes(found: Found) -> None:
    """Print on stderr what a reader must know, and which pictures could not be read."""
    for message in found.notes:
        note(f"note: {message}")
    for question in found.questions:
        for message in question.notes:
            note(f"note: “{question.short}”: {message}")
    for _, error in found.failed:
        note(f"not read: {error}")
