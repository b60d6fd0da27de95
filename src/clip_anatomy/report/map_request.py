"""What `heatmap` and `segment` are asked: model, pictures and texts as typed, opened."""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from clip_anatomy.atomic_output import Kind, Staging, staged
from clip_anatomy.errors import BadImage, OutputError
from clip_anatomy.files import path_of
from clip_anatomy.images.pixels import read_image
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import load
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.progress import progress
from clip_anatomy.report.explain_run import facts
from clip_anatomy.report.map_gather import Source, asked_of, expanded
from clip_anatomy.report.shown_picture import label_of
from clip_anatomy.report.typed_texts import Question

__all__ = ["Request", "opened", "sources_of"]


@dataclass(frozen=True)
class Request:
    """What was asked, opened.

    Attributes:
        clip: the model.
        sources: the pictures.
        questions: the texts with their notes.
        texts: the same, embedded once.
        notes: what a reader must know.
        staging: where to write; None to write nothing.
        allow_urls: fetch http(s) addresses.
    """

    clip: Clip
    sources: tuple[Source, ...]
    questions: tuple[Question, ...]
    texts: Texts
    notes: tuple[str, ...] = ()
    staging: Staging | None = None
    allow_urls: bool = False

    def read(self, source: Source) -> Image.Image:
        """One picture, upright, in its own colours.

        Raises:
            BadImage: it cannot be read.
        """
        if "://" not in source.path and Path(source.path).is_dir():
            raise BadImage(f"{label_of(source.path)} is a folder. Type the folder alone, or the pictures in it")
        return read_image(source.path, allow_urls=self.allow_urls, keep_mode=True)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Name and value of what is needed to make the page again."""
        return facts(self.clip)


@contextmanager
def opened(
    images: Sequence[str],
    text: Sequence[str] | None,
    kind: Kind,
    folder: Path | None,
    *,
    verb: str,
    demo: bool,
    model: str,
    weights: str | None,
    device: str,
    allow_urls: bool,
    notes: Sequence[str],
) -> Generator[Request]:
    """Open the model, find the pictures and embed the texts; what is written into `folder` appears there when all is done.

    Args:
        images: pictures and folders, as typed.
        text: texts, as typed; None for the descriptions of the bundled pictures.
        kind: what the folder will hold.
        folder: where to write; None to write nothing.
        verb: for messages.
        demo: also look at the bundled pictures.
        model: as for `load`.
        weights: likewise.
        device: likewise.
        allow_urls: fetch http(s) addresses.
        notes: what a reader must know.
    """
    sources, described = sources_of(images, verb, demo=demo)
    if folder is None:
        yield _asked(sources, text or described, None, model, weights, device, allow_urls, notes)
        return
    own = path_of(folder).resolve()
    if own in {Path(source.path).resolve().parent for source in sources if "://" not in source.path}:
        raise OutputError(
            f"{folder} holds the pictures: what is drawn would be looked at as pictures the next time. "
            f"Type another folder: --out {folder}-{kind.noun}"
        )
    with staged(folder, replace(kind, names=_written_before(folder, kind))) as staging:
        yield _asked(sources, text or described, staging, model, weights, device, allow_urls, notes)


def _asked(  # noqa: PLR0917
    sources: list[Source],
    text: Sequence[str],
    staging: Staging | None,
    model: str,
    weights: str | None,
    device: str,
    allow_urls: bool,
    notes: Sequence[str],
) -> Request:
    with progress(f"opening {model}"):
        clip = load(model, weights=weights, device=device)
    questions, left_out = asked_of(text, clip.tokenizer)
    texts = Texts.of(clip, [question.text for question in questions])
    return Request(clip, tuple(sources), tuple(questions), texts, (*notes, *left_out), staging, allow_urls)


def sources_of(images: Sequence[str], verb: str, *, demo: bool) -> tuple[list[Source], list[str]]:
    """The pictures to look at, and the descriptions of the bundled ones.

    Raises:
        BadImage: no picture was given.
    """
    from clip_anatomy.data.world.bundled_pictures import bundled

    if not images and not demo:
        raise BadImage(
            f'no picture was given. Type: clip-anatomy {verb} photo.jpg --text "a dog", or clip-anatomy {verb} --demo'
        )
    known = bundled() if demo else {}
    described = list(dict.fromkeys(text for text, _ in known.values()))
    return [*(Source(str(path), path.name) for path in known), *expanded(images)], described


def _written_before(folder: Path, kind: Kind) -> tuple[str, ...]:
    """What an earlier run of the same verb wrote: the new one takes its place, so that no picture of old texts is left."""
    if not kind.owns(folder):
        return ()
    try:
        names = json.loads((folder / kind.mark).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(name for name in names if isinstance(name, str) and Path(name).name == name)
