"""What came of the pictures: their entries, what could not be read, and the files of the folder. Shared by `heatmap` and `segment`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from clip_anatomy import __version__
from clip_anatomy.atomic_output import Kind, slug
from clip_anatomy.errors import BadImage
from clip_anatomy.progress import note
from clip_anatomy.report.cli_wording import said_here
from clip_anatomy.report.map_request import Request
from clip_anatomy.report.shown_picture import TINY, label_of
from clip_anatomy.report.step_progress import stages

__all__ = ["Found", "file_name", "image_bytes", "tell"]

SHEET = "contact-sheet"


@dataclass
class Found:
    """What came of the pictures so far.

    Attributes:
        images: one entry of the JSON each.
        failed: name and error of those that could not be read.
        notes: what a reader must know of single pictures.
        files: names written into the folder.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def each(self, request: Request, doing: str, act: Callable[[Image.Image, str], None]) -> None:
        """Do something with every picture; one that cannot be read is noted, and the others are done.

        Args:
            request: what was asked.
            doing: what people at a terminal are told.
            act: called with the picture and its name.

        Raises:
            BadImage: none of the pictures could be read.
        """
        done = 0
        with stages() as tell:
            for at, source in enumerate(request.sources):
                tell(doing, at, len(request.sources))
                label = source.label or label_of(source.path)
                try:
                    image = request.read(source)
                    act(image, label)
                except BadImage as error:
                    self.failed.append((label_of(source.path), said_here(str(error))))
                    continue
                done += 1
                if image.height < request.clip.patch[0] or image.width < request.clip.patch[1]:
                    self.notes.append(
                        f"{label} is {image.width} × {image.height} pixels, less than one patch of the model "
                        f"({request.clip.patch[1]} × {request.clip.patch[0]}): it was enlarged, and says little about places"
                    )
        if done:
            return
        if len(self.failed) == 1:
            raise BadImage(self.failed[0][1])
        for _, error in self.failed:
            note(f"not read: {error}")
        raise BadImage(f"none of the {len(self.failed)} pictures could be read. Type the paths of pictures: photo.jpg")

    def write(self, request: Request, name: str, content: str | bytes) -> None:
        """Write one file and remember its name."""
        assert request.staging is not None
        request.staging.write(name, content)
        self.files.append(name)

    def write_sheets(self, request: Request, sheets: Sequence[bytes]) -> None:
        """Write contact sheets; the first has no number."""
        for i, sheet in enumerate(sheets):
            self.write(request, f"{SHEET}{'' if i == 0 else f'-{i + 1}'}.png", sheet)

    def told(self, request: Request) -> list[str]:
        """Everything that a reader must know."""
        return [*request.notes, *self.notes, *(f"“{q.short}”: {said}" for q in request.questions for said in q.notes)]

    def header(self, request: Request, kind: Kind, **more: Any) -> dict[str, Any]:
        """What the JSON of both verbs says, with what one of them says besides."""
        clip = request.clip
        return {
            "schema": kind.schema,
            "version": __version__,
            "model": {"name": clip.name, "digest": clip.digest, "preprocess": clip.preprocess.to_dict()},
            **more,
            "notes": [*request.notes, *self.notes],
            "texts": [{"text": q.text, "notes": list(q.notes)} for q in request.questions],
            "failed": [{"image": name, "error": error} for name, error in self.failed],
            "files": self.files,
            "images": self.images,
        }


def tell(request: Request, found: Found) -> None:
    """Print on stderr what a reader must know, and which pictures could not be read."""
    for said in found.told(request):
        note(f"note: {said}")
    for _, error in found.failed:
        note(f"not read: {error}")


def file_name(place: int, label: str, *parts: str) -> str:
    """A file's name without its ending: number, picture, what is drawn.

    Example:
        >>> file_name(3, "holiday/My cat!.jpg", "surgery", "a cat")
        '003-my-cat-surgery-a-cat'
    """
    return "-".join([f"{place:03d}", *(slug(part) for part in (Path(label).stem, *parts))])


def image_bytes(image: Image.Image) -> tuple[str, bytes]:
    """A drawing as (ending, bytes): PNG where it is small, JPEG where it is a photograph."""
    file = BytesIO()
    if max(image.size) <= TINY:
        image.save(file, "PNG", optimize=True)
        return "png", file.getvalue()
    image.save(file, "JPEG", quality=92)
    return "jpg", file.getvalue()
