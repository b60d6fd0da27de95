"""What `explain`, `heatmap`, `segment` and `demo` do alike: pictures as typed, where their folder is written, what is printed."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clip_anatomy.cli.wording import in_cli_words
from clip_anatomy.errors import BadImage, OutputError

if TYPE_CHECKING:
    from clip_anatomy.atomic_output import AtomicOutput, Kind
    from clip_anatomy.data.picture_batches import Failed
    from clip_anatomy.data.typed_pictures import TypedPictures

DEMO_NOTE = (
    "The bundled demo model knows only a small drawn world of shapes, colours, textures and backgrounds. What it says about a "
    "photograph shows how the method works, not what is in the photograph. For that, type: --model open_clip:ViT-B-32/laion2b_s34b_b79k"
)


def asked_pictures(images: Sequence[str], verb: str, *, demo: bool = False) -> "tuple[TypedPictures, list[str]]":
    """Return the pictures to look at, and the true descriptions of the bundled ones.

    Args:
        images: as typed.
        verb: for messages.
        demo: whether the bundled pictures come first.

    Raises:
        BadImage: no picture was given.
        BadInput: a collection that cannot be opened.
    """
    if not images and not demo:
        raise BadImage(
            f'no picture was given. Type: clip-anatomy {verb} photo.jpg --text "a dog", or clip-anatomy {verb} --demo'
        )
    from clip_anatomy.data.typed_pictures import NamedPicture, typed_pictures
    from clip_anatomy.data.world.bundled_pictures import bundled

    known = bundled() if demo else {}
    pictures = [NamedPicture(path, path.name, truth) for path, (_, truth) in known.items()]
    return typed_pictures([*pictures, *images]), list(dict.fromkeys(text for text, _ in known.values()))


def demo_notes(model: str, images: "Sequence[str]") -> tuple[str, ...]:
    """Return what to know of the bundled model where it looks at other pictures than the bundled ones, as they were typed."""
    return (DEMO_NOTE,) if model == "demo" and any(not image.startswith("world:") for image in images) else ()


def named_failures(failed: "Sequence[Failed]") -> "tuple[Failed, ...]":
    """Return what could not be used, with what to type in words of the command line."""
    return tuple((name, in_cli_words(error)) for name, error in failed)


@contextmanager
def output_beside(folder: Path | None, kind: "Kind", images: Sequence[str]) -> "Generator[AtomicOutput | None]":
    """Stage the output folder, if one is written; it is refused where the typed pictures themselves lie.

    Raises:
        OutputError: the folder cannot be written, or holds the pictures or something else.
    """
    from clip_anatomy.atomic_output import atomic_output
    from clip_anatomy.files import path_of, resolved

    if folder is None:
        yield None
        return
    if "\0" not in str(folder) and _holds_some(resolved(path_of(folder)), images, kind):
        raise OutputError(
            f"{folder} holds the pictures: what is drawn would be looked at as pictures the next time. "
            f"Type another folder: --out {f'{folder}-{kind.noun}' if folder.name.strip('.') else kind.noun}"
        )
    with atomic_output(folder, kind) as target:
        yield target


def _holds_some(folder: Path, images: Sequence[str], kind: "Kind") -> bool:
    """Whether typed pictures lie in a folder itself; what lies below it is left alone."""
    from clip_anatomy.data.picture_files import has_suffix
    from clip_anatomy.files import path_of, resolved

    typed = [resolved(path_of(image)) for image in images if "://" not in image and "\0" not in image]
    if any(path.parent == folder and not path.is_dir() for path in typed):
        return True
    if not folder.is_dir() or not any(path == folder or path in folder.parents for path in typed):
        return False
    mine = kind.written(folder)
    return any(has_suffix(path.name) and path.name not in mine for path in folder.iterdir())
