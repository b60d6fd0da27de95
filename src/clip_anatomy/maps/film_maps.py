"""`film_maps`: maps of a film, frame by frame, on disk: a video of any length in constant memory, and one scale for all of it.

frames ─▶ a few at a time ─▶ heatmap ─▶ maps.npy grows        frames again, beside their maps ─▶ drawn, or cut to masks
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedRandom
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from clip_anatomy.data.film import Film, film_of
from clip_anatomy.data.picture_batches import Failed, Pictures, picture_batches
from clip_anatomy.data.typed_pictures import is_address
from clip_anatomy.errors import BadImage, BadSpec
from clip_anatomy.files import written_whole
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import ModelSource, as_clip
from clip_anatomy.maps.automatic import AUTO
from clip_anatomy.maps.heatmap import BATCH, heatmap
from clip_anatomy.maps.map_result import MapRun, Maps
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.progress import Progress
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result

__all__ = ["SCHEMA", "FilmMaps", "film_maps"]

SCHEMA = "clip-anatomy/film/1"
AT_ONCE = 64  # frames whose maps are held where all are gone through
SAMPLE = 2**22  # numbers of maps from which a level is taken


@public
@dataclass(frozen=True, repr=False)
class FilmMaps(Result):
    """Maps of one film, on disk. Walking it gives the `Maps` of one frame after the other, with the frame.

    Attributes:
        values: at patch resolution, memory-mapped.
        texts: what each map is called.
        method: of `heatmap`.
        file: where they lie, for `numpy.load(file, mmap_mode="r")`.
        film: the frames, read again to be drawn, and how many there are a second.
        geometry: where the cells of a map lie in every frame.
        run: what the maps were made with.
        skipped: places of frames that could not be used.
        subtracted: what was subtracted from every text, in words.
    """

    values: Shaped[np.ndarray, "frame text row col"] = field(repr=False)
    texts: tuple[str, ...]
    method: str
    file: Path
    film: Film
    geometry: Geometry
    run: MapRun
    skipped: frozenset[int] = frozenset()
    subtracted: str = ""
    presenter: ClassVar[str] = "film_folder"

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.film.rate

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.values)

    def __iter__(self) -> Iterator[Maps]:
        """Walk the frames: each with its maps."""
        at = 0
        for place, picture in enumerate(self.film):
            if place in self.skipped:
                continue
            if at == len(self):
                return
            if is_address(picture.image):
                image = picture.read(keep_mode=True, allow_urls=self.film.allow_urls)
                picture = replace(picture, image=image)  # noqa: PLW2901
            values = torch.from_numpy(np.array(self.values[at : at + 1]))
            yield Maps(values, self.method, self.texts, (self.geometry,), (picture,), self.run, self.subtracted)
            at += 1

    def chunks(self) -> Iterator[Maps]:
        """Walk the maps alone, some frames at a time."""
        for first in range(0, len(self), AT_ONCE):
            values = torch.from_numpy(np.array(self.values[first : first + AT_ONCE]))
            yield Maps(values, self.method, self.texts, (self.geometry,) * len(values), None, self.run)

    def sample(self) -> Float[Tensor, "text frame_row col"]:
        """Return maps of frames spread evenly over the film, one below the other: what a level of the whole film is taken from."""
        step = -(-self.values.size // SAMPLE)
        return torch.from_numpy(np.concatenate(list(self.values[::step]), axis=1))

    def to_dict(self) -> dict[str, Any]:
        """Return what the maps are of, and each text's lowest and highest value and its frame; the numbers are in `file`."""
        low, high, frame = self._ends()
        maps = [
            {"text": text, "lowest": round(low[k], 6), "highest": round(high[k], 6), "highest_frame": frame[k]}
            for k, text in enumerate(self.texts)
        ]
        size = self.run.size
        return {
            "schema": SCHEMA,
            "model": self.run.model,
            "method": self.method,
            "subtracted": self.subtracted,
            "size": list(size) if isinstance(size, tuple) else size,
            "options": {**self.run.options},
            "frames": len(self),
            "frames_per_second": self.rate,
            "height": self.geometry.picture[0],
            "width": self.geometry.picture[1],
            "maps": maps,
            "failed": [{"image": name, "error": error} for name, error in self.run.failed],
        }

    def summary(self) -> str:
        """Return how many frames there are, and the range of each text."""
        low, high, frame = self._ends()
        rows, cols = self.values.shape[2:]
        lines = [f"{self.method}: maps of {len(self):,} frames, {self.rate:g} a second, {rows} × {cols} patches each"]
        lines += [
            f"  {text!r}: {low[k]:+.4f} to {high[k]:+.4f}, highest in frame {frame[k]:,}"
            for k, text in enumerate(self.texts)
        ]
        return "\n".join(lines)

    def _ends(self) -> tuple[list[float], list[float], list[int]]:
        """Return lowest and highest value of each text, and the frame of the highest."""
        by_frame = [(one.amin((2, 3)), one.amax((2, 3))) for one in (maps.values for maps in self.chunks())]
        low, high = torch.cat([a for a, _ in by_frame]), torch.cat([b for _, b in by_frame])
        return low.amin(0).tolist(), high.amax(0).tolist(), high.argmax(0).tolist()


@public
def film_maps(
    clip: Clip | ModelSource,
    frames: Pictures,
    texts: Sequence[str] | Tensor | Texts,
    file: str | Path,
    method: str = AUTO,
    *,
    rate: float | None = None,
    templates: Sequence[str] | None = None,
    allow_urls: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> FilmMaps:
    """Draw maps of a film of any length in constant memory.

    Args:
        clip: an opened model, or what `load` opens.
        frames: a video (extra `video`), an animation (GIF, WebP, PNG), a folder of frames (frame-2 before frame-10), or a list of pictures
            of one size.
        texts: as for `heatmap`.
        file: where the maps are written, a `.npy`.
        method: a name of METHODS.
        rate: frames a second: of a video so many are looked at, others follow each other so fast. A video's own, or 10, by default.
        templates: as for `heatmap`.
        allow_urls: fetch http(s) addresses.
        skip_bad: leave out frames that cannot be used (`run.failed` names them) instead of raising at the first.
        progress: told how many frames are done.
        **options: of `heatmap` (against, size, window, stride, registers, replace_sinks), and of the method.

    Returns:
        Maps on disk; `save(folder)` draws every frame, a GIF and (with the extra `video`) an MP4 on one scale of colours.

    Raises:
        BadSpec: a file that is no `.npy`, or frames that cannot be walked twice.
        BadImage: a frame that cannot be read, or of another size than the first.
        BadInput: a film that cannot be opened.

    Example:
        >>> import tempfile
        >>> from clip_anatomy.loading.demo import examples
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     film_maps("demo", examples()[:3], ["a bird"], f"{folder}/maps.npy").values.shape
        (3, 1, 8, 8)
    """
    clip, path = as_clip(clip), Path(file)
    if path.suffix != ".npy":
        raise BadSpec(f"{path} is no .npy file. Type: file='maps.npy'")
    film, wanted = replace(film_of(frames, rate), allow_urls=allow_urls), Texts.of(clip, texts, templates)
    failed: list[Failed] | None = [] if skip_bad else None
    notes: list[str] = []
    first: Maps | None = None
    done, walked, skipped = 0, 0, set[int]()
    with written_whole(path) as temporary, temporary.open("r+b") as out:
        for batch in picture_batches(
            clip, film.frames, options.get("size"), BATCH, own=options.get("window") is not None, allow_urls=allow_urls, failed=failed, notes=notes, progress=progress
        ):  # fmt: skip
            maps = heatmap(clip, batch, wanted, method, **options)
            first = maps[:1] if first is None else first
            _refuse_another_size(first, maps)
            if not done:
                _write_header(out, (0, *maps.values.shape[1:]))
            out.write(maps.values.float().cpu().numpy().astype("<f4").tobytes())
            skipped |= set(range(walked, batch.places[-1] + 1)) - set(batch.places)
            done, walked = done + len(maps), batch.places[-1] + 1
        assert first is not None
        _write_header(out, (done, *first.values.shape[1:]))
    assert first.run is not None
    assert first.geometries is not None
    run = replace(first.run, failed=tuple(failed or ()), notes=tuple(notes))
    values = np.load(path, mmap_mode="r")
    return FilmMaps(
        values, wanted.names, first.method, path, film, first.geometries[0], run, frozenset(skipped), first.subtracted
    )


def _refuse_another_size(first: Maps, maps: Maps) -> None:
    assert first.geometries is not None
    assert maps.geometries is not None
    for name, where in zip(maps.names, maps.geometries, strict=True):
        if where != first.geometries[0]:
            sizes = [f"{one.picture[1]} × {one.picture[0]}" for one in (where, first.geometries[0])]
            raise BadImage(
                f"{name} is {sizes[0]} pixels, and the frames before it {sizes[1]}: frames of a film have one size. "
                "Type heatmap for pictures of different sizes"
            )


def _write_header(out: BufferedRandom, shape: tuple[int, ...]) -> None:
    """Write the head of an .npy file at its beginning: numpy leaves room for the first number to grow, so that its length stays."""
    out.seek(0)
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
