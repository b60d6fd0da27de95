"""A video or an animation as an ordered collection of frames: decoded one after the other, none is kept."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from clip_anatomy.data.picture import ImageData, Picture, unreachable
from clip_anatomy.errors import BadImage, BadInput, ClipAnatomyError, MissingExtra, reading
from clip_anatomy.files import resolved

__all__ = ["VIDEOS", "Video", "is_animation", "is_video"]

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
ANIMATIONS = (".gif", ".webp", ".png", ".apng")
MILLISECONDS = 100  # of a frame whose animation does not say


def is_video(name: str | Path) -> bool:
    """Tell whether a name ends as those of videos do."""
    return str(name).lower().endswith(VIDEOS)


def is_animation(path: Path) -> bool:
    """Tell whether a file is a picture that moves (GIF, WebP, PNG)."""
    if path.suffix.lower() not in ANIMATIONS or not path.is_file():
        return False
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # whoever reads it says what is wrong with it
        return False


@dataclass(frozen=True)
class Video:
    """The frames of a video (extra `video`) or an animation, in order.

    Attributes:
        file: where it is.
        rate: frames a second.
        every: take this many a second; None for all.
    """

    file: Path
    rate: float
    every: float | None = None

    @staticmethod
    def of(file: Path, every: float | None = None) -> "Video":
        """Open a film.

        Raises:
            BadInput: it cannot be read as one.
            MissingExtra: PyAV is not installed.
        """
        file = resolved(file)
        try:
            with reading(file, "Type a film that plays elsewhere, or a folder of its frames"):
                rate = _animation_rate(file) if file.suffix.lower() in ANIMATIONS else _video_rate(file)
        except MissingExtra:
            raise
        except ClipAnatomyError as error:
            raise BadInput(f"{file.name} is no collection of frames: {error}") from error
        return Video(file, rate, every)

    @property
    def spec(self) -> str:
        """The file's path."""
        return str(self.file)

    def __iter__(self) -> Iterator[Picture]:
        """Walk the frames; with `every`, the first one of each so many-th part of a second."""
        self.check()
        frames = _animation_frames(self.file) if self.file.suffix.lower() in ANIMATIONS else _video_frames(self.file)
        taken = 0
        with closing(frames):
            for number, (time, image) in enumerate(frames):
                if self.every is not None and time + 1e-6 < taken / self.every:
                    continue
                taken += 1
                yield Picture(f"{self.file.name}#{number:06d}", image, str(number))

    def count(self) -> int | None:
        """Leave it unknown: what a file says of it is often wrong."""
        return None

    def check(self) -> None:
        """Raise BadInput when the file has gone."""
        if not self.file.is_file():
            raise unreachable(f"the film {self.file}")

    def fetch(self, path: str) -> ImageData:
        """Decode one frame again, by its number."""
        frame = next((one.data for one in Video(self.file, self.rate) if one.path == path), None)
        if frame is None or isinstance(frame, BadImage):
            raise BadImage(f"{self.file} has no frame {path}. Type one that it has: {self.file.name}#000000")
        return frame


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("PyAV (videos)", "video") from error
    return av


def _video_rate(file: Path) -> float:
    with _av().open(str(file)) as video:
        stream = video.streams.video[0]
        return float(stream.average_rate or stream.guessed_rate or 25)


def _video_frames(file: Path) -> Generator[tuple[float, Image.Image]]:
    """Walk a video: seconds from its beginning, and the frame as it is shown (turned as the file says)."""
    rate = _video_rate(file)
    with reading(file, "Type a whole copy"), _av().open(str(file)) as video:
        video.streams.video[0].thread_type = "AUTO"
        first = None
        for number, frame in enumerate(video.decode(video=0)):
            time = number / rate if frame.time is None else float(frame.time)
            first = time if first is None else first
            image = frame.to_image()
            turn = round(getattr(frame, "rotation", 0) / 90) % 4
            yield time - first, image.transpose(_TURNS[turn]) if turn else image


_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


def _animation_rate(file: Path) -> float:
    with Image.open(file) as image:
        image.load()
        return 1000 / float(image.info.get("duration") or MILLISECONDS)


def _animation_frames(file: Path) -> Generator[tuple[float, Image.Image]]:
    with reading(file, "Type a whole copy"), Image.open(file) as image:
        milliseconds = 0.0
        for frame in ImageSequence.Iterator(image):
            shown = frame.convert("RGB")
            yield milliseconds / 1000, shown
            milliseconds += float(frame.info.get("duration") or MILLISECONDS)
