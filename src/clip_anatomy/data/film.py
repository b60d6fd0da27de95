"""What can be looked at as a film: a video, an animation, a folder of frames in the order in which people count, a list of pictures."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_anatomy.data.folders import Folder
from clip_anatomy.data.open_dataset import is_collection, open_dataset
from clip_anatomy.data.picture import Source
from clip_anatomy.data.typed_pictures import NamedPicture, named_picture, typed_pictures
from clip_anatomy.data.video_file import Video, is_animation, is_video
from clip_anatomy.errors import BadSpec
from clip_anatomy.files import path_of

__all__ = ["Film", "film_of"]

RATE = 10.0  # frames a second of pictures that do not say how fast they follow each other


@dataclass(frozen=True)
class Film:
    """Frames that can be walked again and again.

    Attributes:
        frames: in order.
        rate: how many a second.
        allow_urls: whether frames at http(s) addresses are fetched when they are read again.
    """

    frames: Source
    rate: float
    allow_urls: bool = False

    def __iter__(self) -> Iterator[NamedPicture]:
        """Walk the frames."""
        for place, picture in enumerate(self.frames):
            yield named_picture(place, picture)


def film_of(frames: Any, rate: float | None = None) -> Film:
    """Open a film.

    Args:
        frames: a video, an animation (GIF, WebP, PNG), a folder (frame-2 before frame-10), any other collection, or a list of pictures.
        rate: frames a second: of a video so many are taken, others are played so fast. None for a video's own, and 10 for pictures.

    Raises:
        BadInput: it cannot be opened.
        BadSpec: a rate that is none, or frames that can be walked only once.
    """
    if rate is not None and not 0 < rate <= 1000:
        raise BadSpec(
            f"{rate} frames a second: more than none, and at most 1,000, were expected. Type a number such as 10"
        )
    if isinstance(frames, Sequence) and not isinstance(frames, str | Path) and len(frames) == 1:
        frames = frames[0] if isinstance(frames[0], str | Path | Source) else frames
    if isinstance(frames, str | Path):
        path = path_of(frames)
        if is_video(path) or is_animation(path):
            video = Video.of(path, rate)
            return Film(video, min(rate or video.rate, video.rate))
        if not is_collection(frames):
            raise BadSpec(f"{str(frames)!r} is one picture, not a film. Type a video, or a folder of frames")
        source = open_dataset(frames)
        if isinstance(source, Folder):
            source = typed_pictures([source.root / name for name in sorted(source.paths(), key=_as_counted)])
        return Film(source, rate or RATE)
    if isinstance(frames, Source):
        return Film(frames, rate or RATE)
    if not isinstance(frames, Sequence):
        raise BadSpec(
            f"frames of a film are looked at twice, and a {type(frames).__name__} can be once. Type: list(frames)"
        )
    return Film(typed_pictures(frames), rate or RATE)


def _as_counted(name: str) -> list[Any]:
    """Sort numbers in names by their value.

    Example:
        >>> sorted(["f10.png", "f2.png"], key=_as_counted)
        ['f2.png', 'f10.png']
    """
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
