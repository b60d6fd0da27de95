"""What `explain`, `heatmap`, `segment` and `demo` do alike: pictures as typed, where their folder is written, what is printed."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clip_anatomy.cli.wording import in_cli_words
from clip_anatomy.errors import BadImage, OutputError

if TYPE_CHECKING:
    from clip_anatomy.atomic_output import Kind, Staging
    from clip_anatomy.data.picture_batches import Failed, NamedPicture

DEMO_NOTE = (
    "The bundled demo model knows only a small drawn world of shapes, colours, textures and backgrounds. What it says about a "
    "photograph shows how the method works, not what is in the photograph. For that, type: --model open_clip:ViT-B-32/laion2b_s34b_b79k"
)


def typed_pictures(images: Sequence[str], verb: str, *, demo: bool = False) -> "tuple[list[NamedPicture], list[str]]":
    """Return the pictures to look at, folders as the pictures in them, and the true descriptions of the bundled ones.

    Args:
        images: as typed.
        verb: for messages.
        demo: whether the bundled pictures come first.

    Raises:
        BadImage: no picture was given, or a folder holds none.
    """
    if not images and not demo:
        raise BadImage(
            f'no picture was given. Type: clip-anatomy {verb} photo.jpg --text "a dog", or clip-anatomy {verb} --demo'
        )
    from clip_anatomy.data.picture_batches import NamedPicture, named_pictures
    from clip_anatomy.data.world.bundled_pictures import bundled

    known = bundled() if demo else {}
    pictures = [NamedPicture(path, path.name, truth) for path, (_, truth) in known.items()]
    return [*pictures, *named_pictures(images)], list(dict.fromkeys(text for text, _ in known.values()))


def demo_notes(model: str, pictures: "Sequence[NamedPicture]") -> tuple[str, ...]:
    """Return what to know of the bundled model where it looks at other pictures than the bundled ones."""
    return (DEMO_NOTE,) if model == "demo" and any(not picture.caption for picture in pictures) else ()


def named_failures(failed: "Sequence[Failed]") -> "tuple[Failed, ...]":
    """Return what could not be used, with what to type in words of the command line."""
    return tuple((name, in_cli_words(error)) for name, error in failed)


@contextmanager
def staged_beside(folder: Path | None, kind: "Kind", pictures: "Sequence[NamedPicture]") -> "Generator[Staging | None]":
    """Stage the output folder, if one is written; it is refused where the pictures themselves lie.

    Raises:
        OutputError: the folder cannot be written, or holds the pictures or something else.
    """
    from clip_anatomy.atomic_output import staged
    from clip_anatomy.files import path_of

    if folder is None:
        yield None
        return
    paths = [
        Path(picture.image)
        for picture in pictures
        if isinstance(picture.image, str | Path) and "://" not in str(picture.image)
    ]
    if "\0" not in str(folder) and path_of(folder).resolve() in {path.resolve().parent for path in paths}:
        raise OutputError(
            f"{folder} holds the pictures: what is drawn would be looked at as pictures the next time. "
            f"Type another folder: --out {folder}-{kind.noun}"
        )
    with staged(folder, kind) as staging:
        yield staging
