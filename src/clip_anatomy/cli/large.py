"""What `heatmap` and `segment` do with a film, and with a picture that fits into no memory: maps on disk, drawn a frame or a tile at a time."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from clip_anatomy.cli.options import ModelOptions, OutputOptions, ReadingOptions, print_json, print_notes
from clip_anatomy.errors import BadSpec, BadText

if TYPE_CHECKING:
    from clip_anatomy.atomic_output import AtomicOutput
    from clip_anatomy.loading.clip import Clip
    from clip_anatomy.maps.film_maps import FilmMaps
    from clip_anatomy.maps.tiled_maps import TiledMaps
    from clip_anatomy.progress import Progress

FilmRate = Annotated[
    float | None,
    Parameter(
        name="--film",
        help="take the pictures as frames of one film, so many a second, on one scale: a picture each, a GIF and (with the extra video) an MP4. A video (.mp4, .mov …) is one without this; then so many frames a second are taken of it.",
    ),
]
TilesLevel = Annotated[
    int | None,
    Parameter(
        name="--tiles",
        help="read one large picture (TIFF, geo-TIFF, whole slide, .npy, zarr) tile by tile in constant memory, this level of its pyramid (0 is the finest), and draw image pyramids (Deep Zoom).",
    ),
]


@dataclass(frozen=True)
class LargeRequest:
    """What is asked of a film or a large picture.

    Attributes:
        verb: "heatmap" or "segment".
        images: as typed.
        film: frames a second.
        tiles: level of a picture's pyramid.
        texts: as typed.
        method: one of `heatmap`, or "auto".
        background: texts that take pixels and are no label.
        threshold: of masks; None draws maps.
        colours: of maps.
        pictures: whether frames and pyramids are kept.
        size: as typed.
        options: of `heatmap`, None where they were not typed.
        refused: options that have no meaning here, and whether they were typed.
    """

    verb: str
    images: Sequence[str]
    film: float | None
    tiles: int | None
    texts: Sequence[str] | None
    method: str
    background: Sequence[str] = ()
    threshold: str | None = None
    colours: str = "signed"
    pictures: bool | None = None
    size: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    refused: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def chosen(self) -> dict[str, Any]:
        """Return the options of `heatmap` that were typed.

        Raises:
            BadSpec: one that has no meaning for a film or for tiles.
        """
        from clip_anatomy.images.input_size import parse_size

        what = "a film" if self.tiles is None else "a picture in tiles"
        for name in (name for name, typed in self.refused.items() if typed):
            raise BadSpec(f"--{name} is not for {what}. Leave it out")
        chosen = {name: value for name, value in self.options.items() if value is not None}
        if self.tiles is None:
            windowed = "window" in chosen and self.size == "whole"  # windows look at a picture's own pixels
            return {**chosen, "size": None if windowed else parse_size(self.size)}
        if self.size not in (None, "whole", "crop"):
            raise BadSpec(
                f"--size {self.size} is of a picture seen at once, and tiles have their own. Type --window 224"
            )
        return chosen


def is_large(images: Sequence[str], film: float | None, tiles: int | None) -> bool:
    """Tell whether a film or a picture in tiles was asked for.

    Raises:
        BadSpec: both at once, or a video among other pictures.
    """
    from clip_anatomy.data.video_file import is_video

    if film is not None and tiles is not None:
        raise BadSpec("--film is of frames, --tiles of one large picture. Type one of them")
    videos = [image for image in images if is_video(image)]
    if (videos or tiles is not None) and len(images) != 1:
        what = f"{videos[0]} is a film" if videos else "--tiles is of one picture"
        raise BadSpec(f"{what}, and {len(images)} were typed. Type one at a time")
    return film is not None or tiles is not None or bool(videos)


def draw_large(request: LargeRequest, opening: ModelOptions, output: OutputOptions, reading: ReadingOptions) -> int:
    """Draw maps or masks of a film or of a large picture into a folder.

    Returns:
        Exit code, as of `heatmap`.

    Raises:
        BadSpec: JSON without a folder: the maps lie in it.
        BadText: no text.
    """
    from clip_anatomy.cli.pictures import output_beside
    from clip_anatomy.loading.typed_texts import typed_texts
    from clip_anatomy.progress import note, say, shown
    from clip_anatomy.report import film_folder, tiles_folder

    folder = output.folder("film" if request.tiles is None else "tiles")
    request.chosen()
    if folder is None:
        raise BadSpec("--json alone writes nothing, and these maps lie in a file. Type also: --out FOLDER")
    if not request.texts:
        raise BadText('no text was given. Type also: --text "a dog"')
    module = film_folder if request.tiles is None else tiles_folder
    with ExitStack() as stack:
        progress = stack.enter_context(shown(f"opening {opening.model}"))
        target = stack.enter_context(output_beside(folder, module.KIND, request.images))
        assert target is not None
        clip = opening.load()
        typed, notes = typed_texts(request.texts, clip.tokenizer)
        behind = [one.text for one in typed_texts(request.background, clip.tokenizer)[0]] if request.background else []
        result = _mapped(clip, request, [*(one.text for one in typed), *behind], target, progress, reading=reading)
        drawing = {"colours": request.colours, "threshold": request.threshold, "background": len(behind)}
        module.write(result, target, progress, pictures=request.pictures, **drawing)  # pyright: ignore[reportArgumentType]
    print_notes([*notes, *result.run.notes], result.run.failed)
    print_json(result.to_dict()) if output.as_json else say(result.summary())
    note(f"{request.verb}: {folder / 'index.html'}")
    return reading.exit_code(result.run.failed)


def _mapped(
    clip: "Clip",
    request: LargeRequest,
    texts: list[str],
    target: "AtomicOutput",
    progress: "Progress",
    *,
    reading: ReadingOptions,
) -> "FilmMaps | TiledMaps":
    from clip_anatomy.maps.film_maps import film_maps
    from clip_anatomy.maps.map_set import checked_methods
    from clip_anatomy.maps.segment import method_for_masks
    from clip_anatomy.maps.tiled_maps import tiled_maps

    options, file = request.chosen(), target.folder / "maps.npy"
    methods = checked_methods(clip, [request.method])
    if len(methods) != 1:
        raise BadSpec("a film or a large picture is drawn by one method. Type --method decomposition")
    chosen: Any = methods[0]
    if request.threshold is not None:
        wanted = request.method if request.method == "auto" else methods[0]
        _, chosen, given = method_for_masks(clip, wanted, len(texts) > 1, {})
        options = {**given, **options}
    if request.tiles is not None:
        return tiled_maps(
            clip, Path(request.images[0]), texts, file, chosen, level=request.tiles, progress=progress, **options
        )
    return film_maps(
        clip, list(request.images), texts, file, chosen, rate=request.film, allow_urls=reading.allow_urls, skip_bad=True, progress=progress, **options,
    )  # fmt: skip
