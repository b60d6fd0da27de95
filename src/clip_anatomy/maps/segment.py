"""`segment`: from maps to masks. One text makes a mask, several make a label map, each pixel of the original picture with one label."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Float, Int16
from PIL import Image
from torch import Tensor

from clip_anatomy.data.picture_batches import Failed, NamedPicture, Pictures, picture_batches
from clip_anatomy.engine.engine import Engine, works_here
from clip_anatomy.errors import BadImage, BadSpec, BadText
from clip_anatomy.images.batch_size import is_out_of_memory
from clip_anatomy.images.input_size import Size
from clip_anatomy.images.pixels import is_preprocessed
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import ModelSource, as_clip
from clip_anatomy.loading.registered_clip import registered
from clip_anatomy.maps.automatic import AUTO, chosen_method
from clip_anatomy.maps.contrast import NOTHING
from clip_anatomy.maps.dense_attention import VARIANTS
from clip_anatomy.maps.heatmap import BATCH, heatmap
from clip_anatomy.maps.map_result import MapRun, Maps
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.maps.maps_on_workers import WorkersMaps, maps_on_workers
from clip_anatomy.maps.masks import Masks, MaskSettings, PackedLabels
from clip_anatomy.maps.pamr import REFINERS, refined
from clip_anatomy.maps.registry import methods_of
from clip_anatomy.maps.resnet_maps import POOL_VARIANTS
from clip_anatomy.maps.thresholds import RULES, UNSEEN, checked_rule, cut, cut_chunks, cut_strips, otsu
from clip_anatomy.maps.windows import WindowSize
from clip_anatomy.progress import Progress
from clip_anatomy.public_functions import public

__all__ = ["RULES", "UNSEEN", "MaskSettings", "Masks", "cut", "method_for_masks", "otsu", "segment"]

MOST_SCORES = 2**24  # numbers of maps at pixels held at once
MOST_PIXELS = (
    2**22
)  # pixels that are labelled at once: a larger picture a strip at a time, and its level is taken from so many of them


@public
def segment(
    clip: Clip | ModelSource,
    images: Pictures,
    texts: Sequence[str] | Tensor | Texts,
    method: str = AUTO,
    *,
    threshold: str | float = "lenient",
    background: Sequence[str] | Texts = (),
    size: Size = "whole",
    window: WindowSize = None,
    stride: WindowSize = None,
    registers: int = 0,
    at: str = "picture",
    refine: str | None = None,
    templates: Sequence[str] | None = None,
    together: Sequence[Sequence[str]] = (),
    allow_urls: bool = False,
    skip_bad: bool = False,
    engine: Engine | str = "local",
    progress: Progress | None = None,
    **options: Any,
) -> Masks:
    """Say which pixels belong to which text.

    Each pixel goes to the text with the highest map there. It keeps it if that value lies above a cut found in each picture by
    itself; with background texts the value is first taken against the best of them. A cut parts every picture in two, so a
    mask says where a text is answered most, not whether the thing is there.

    The default cut was the best on the demo world by IoU: docs/segment.md has the table. Refined by PAMR it is better by far.

    Nothing is subtracted from the texts of "decomposition", and with several texts "surgery" goes without its feature surgery
    (as its authors advise for segmentation, in threads 8 and 25 of their repository): what texts share says where something is at all.

    Args:
        clip: an opened model, or what `load` opens.
        images: paths (of a folder all pictures in it), PIL images, arrays, or a preprocessed tensor [image, 3, row, col].
        texts: one thing to cut out, or a list of classes; strings, embeddings [text, embed], or `Texts`.
        method: of `heatmap`. "auto": with several texts on a tower of twelve blocks or more "scclip", else the decomposition; see
            `automatic`.
        threshold: a rule of RULES, or a number from 0 (all) to 1 (nothing): a share of the way from the lowest to the highest value.
        background: texts of what is around, which take pixels and are no label: ["grass", "sky"].
        size: "whole" scales the short side to the model's own and crops nothing; None looks through the model's crop and
            leaves what it does not see unlabelled; a number or (row, col) as in `heatmap`.
        window: look through square windows of so many pixels, as in `heatmap`; with "whole" at the picture's own size.
        stride: from one window to the next.
        registers: give the model so many registers at test time, as in `heatmap`.
        at: labels for every pixel of the "picture", or for every "patch".
        refine: "pamr" to follow the picture's edges; None for not.
        templates: prompts with one `{}` each.
        together: groups of texts whose points for SAM are also wanted together.
        allow_urls: fetch http(s) addresses.
        skip_bad: leave out pictures that cannot be used (`masks.maps.run.failed` names them) instead of raising at the first.
        engine: "local", "ray", or an opened one (`open_engine`), whose workers look at 64 pictures at a time.
        progress: told how many pictures are done.
        **options: of the method.

    Returns:
        Masks. They print how they were made.

    Raises:
        BadSpec: unknown method, rule, refinement or option.
        BadText: no text, one that is blank or stands twice.
        BadImage: an image cannot be used.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> print(segment(ca.load("demo"), examples()[:1], ["a bird"]).how)
        maps: decomposition; looked at: whole; threshold: lenient; at picture resolution, not refined
    """
    clip, rule = as_clip(clip), checked_rule(threshold)
    if not works_here(engine):
        texts = Texts.of(clip, texts, templates)
        behind = _background(clip, background, templates, texts)
        made = maps_on_workers(
            engine, clip, _segment_part, _without_run, images=images, texts=[texts] if behind is None else [texts, behind], method=method, threshold=threshold,
            size=size, window=window, stride=stride, registers=registers, at=at, refine=refine, together=together, skip_bad=skip_bad,
            allow_urls=allow_urls, progress=progress, **options,
        )  # fmt: skip
        return _joined(made)
    clip = registered(clip, registers) if registers else clip
    _checked(refine, at)
    wanted = Texts.of(clip, texts, templates)
    behind = _background(clip, background, templates, wanted)
    everything = wanted if behind is None else wanted + behind
    tensor = isinstance(images, Tensor) and is_preprocessed(images)
    if tensor and refine:
        raise BadSpec("refine= needs the pictures, and these are preprocessed tensors. Type: segment(clip, paths, ...)")
    name, chosen, given = method_for_masks(clip, method, len(everything) > 1, options)
    input_size = None if isinstance(size, str) and size == "whole" and (window is not None or tensor) else size
    labels, levels, places, parts = PackedLabels(), list[float](), list[int](), list[Maps]()
    failed: list[Failed] | None = [] if skip_bad else None
    notes: list[str] = []
    for batch in picture_batches(
        clip, images, input_size, BATCH, own=window is not None, allow_urls=allow_urls, failed=failed, notes=notes, progress=progress
    ):  # fmt: skip
        maps = heatmap(clip, batch, everything, chosen, size=input_size, window=window, stride=stride, **given)
        labelled: list[int] = []
        for i in range(len(maps)):
            original = batch.pictures[i] if refine and batch.pictures else None
            if (mask := _cut_or_note(maps[i], original, at, len(wanted), rule, failed=failed)) is not None:
                labels.add(mask[0])
                levels.append(mask[1])
                labelled.append(i)
        if labelled:
            parts.append(maps if len(labelled) == len(maps) else Maps.joined([maps[i] for i in labelled]))
            places += [batch.places[i] for i in labelled]
    if failed and not parts:
        raise BadImage(f"none of the {len(failed)} pictures could be used. The first: {failed[0][0]}: {failed[0][1]}")
    maps = Maps.joined(parts).in_order(places)
    assert maps.run is not None
    maps = replace(maps, run=replace(maps.run, failed=tuple(failed or ()), notes=tuple(notes)))
    order = sorted(range(len(places)), key=places.__getitem__)
    resolution = "patch" if at == "patch" or maps.geometries is None else "picture"
    looked_at = _size_words(size, window, tensor=tensor)
    how = MaskSettings(name, options, rule, () if behind is None else behind.names, looked_at, resolution, refine)
    thresholds = tuple(levels[i] for i in order)
    return Masks(labels.in_order(order), wanted.names, maps, thresholds, how, tuple(map(tuple, together)))


def _segment_part(clip: Clip, images: Pictures, texts: Texts, background: Texts | None = None, **options: Any) -> Masks:
    return segment(clip, images, texts, background=() if background is None else background, **options)


def _without_run(masks: Masks) -> tuple[Masks, MapRun]:
    assert masks.maps.run is not None
    return replace(masks, maps=replace(masks.maps, values=masks.maps.values.cpu(), run=None)), masks.maps.run


def _joined(made: WorkersMaps) -> Masks:
    labels = PackedLabels.joined([part.labels for part in made.parts])
    levels = tuple(level for part in made.parts for level in part.thresholds)
    return replace(
        made.parts[0], labels=labels, maps=made.joined([part.maps for part in made.parts]), thresholds=levels
    )


def _background(
    clip: Clip, texts: Sequence[str] | Texts, templates: Sequence[str] | None, wanted: Texts
) -> Texts | None:
    """Return the background's texts, if there are any."""
    if not isinstance(texts, str | Texts) and not len(texts):
        return None
    behind = Texts.of(clip, texts, templates)
    if shared := [text for text in behind.names if text in wanted.names]:
        raise BadText(f"{shared[0]!r} is a text and a background text. Type it once")
    return behind


def _cut_or_note(
    one: Maps, original: NamedPicture | None, at: str, texts: int, rule: str | float, *, failed: list[Failed] | None
) -> tuple[Int16[np.ndarray, "row col"], float] | None:
    """Label one image; where it does not fit into memory, note that, if failures are noted, and return None."""
    try:
        return _cut(one, None if original is None else original.read(), at, texts, rule)
    except (RuntimeError, MemoryError) as error:
        if failed is None or not is_out_of_memory(error):
            raise
        failed.append((one.short_names[0], "it does not fit into memory. Scale it down, or leave refine= away"))
        return None


def _cut(
    one: Maps, refine: Image.Image | None, at: str, texts: int, rule: str | float
) -> tuple[Int16[np.ndarray, "row col"], float]:
    """Label the pixels of one image (or its patches), whole or, where it is too large for that, a strip of rows at a time."""
    if at == "patch" or one.geometries is None:
        return cut_chunks([one.values[0]], texts, rule)
    rows, cols = one.geometries[0].picture
    if refine is not None or rows * cols <= MOST_PIXELS:
        return cut_chunks(_scores(one, refine), texts, rule)
    step, high = ceil((rows * cols / MOST_PIXELS) ** 0.5), max(1, MOST_PIXELS // cols)
    every = slice(None, None, step)
    strips = (_scores(one, None, slice(first, first + high)) for first in range(0, rows, high))
    return cut_strips(_scores(one, None, every, every), strips, texts, rule)


def _scores(
    one: Maps, refine: Image.Image | None, rows: slice = slice(None), cols: slice = slice(None)
) -> Iterator[Float[Tensor, "text row col"]]:
    """Return the maps of one image at pixels of its picture, a few texts at a time; refined where the picture is given."""
    assert one.geometries is not None
    picture = one.geometries[0].picture
    patch = min(side / cells for side, cells in zip(picture, one.values.shape[2:], strict=True))
    pixels = len(range(picture[0])[rows]) * len(range(picture[1])[cols])
    some = max(1, MOST_SCORES // pixels)
    levels = None if refine is None else np.asarray(refine)
    for first in range(0, len(one.texts), some):
        few = slice(first, first + some)
        scores = replace(one, values=one.values[:, few], texts=one.texts[few]).on_picture(0, rows, cols)
        yield scores if levels is None else refined(scores.cpu(), levels, patch=patch)


def _checked(refine: str | None, at: str) -> None:
    if refine is not None and refine not in REFINERS:
        raise BadSpec(f"refine {refine!r} is not known. Type one of: {', '.join(REFINERS)}, or leave it out")
    if refine is not None and at == "patch":
        raise BadSpec("refine= follows pixels, and labels of patches were asked for. Type: at='picture'")
    if at not in ("picture", "patch"):
        raise BadSpec(f"at={at!r} is not known. Type: at='picture' or at='patch'")


def method_for_masks(
    clip: Clip, method: str, several: bool, options: dict[str, Any]
) -> tuple[str, Any, dict[str, Any]]:
    """Tell what it is called, what is run, with which options."""
    method = chosen_method(clip, classes=several).method if method == AUTO else method
    known = methods_of(clip).get(method)
    if several and known is not None and not known.per_text:
        raise BadSpec(f"method {method!r} has the same map for every text. Type one text, or method='decomposition'")
    if several and method == "surgery":
        depth = {name: options[name] for name in options if name == "depth"}
        if other := [name for name in options if name not in ("depth", "against")]:
            raise BadSpec(f"method 'surgery' has no option {other[0]!r}. Its options: depth, against")
        variant = {"transformer": VARIANTS, "resnet": POOL_VARIANTS}[clip.vision.architecture]["surgery"]
        return "surgery (architecture only)", replace(variant, **depth), {}
    return method, method, {"against": NOTHING, **options} if method == "decomposition" else options


def _size_words(size: Size | str, window: WindowSize, *, tensor: bool) -> str:
    """Say what the model looked at."""
    if window is not None:
        whole = "the whole picture at its own size" if size == "whole" else _size_words(size, None, tensor=tensor)
        return f"{whole} in windows of {window}"
    if tensor:
        return "tensors as given"
    if size is None:
        return "the model's crop"
    if isinstance(size, int):
        return f"whole, short side {size}"
    return size if isinstance(size, str) else f"whole, {size[0]} × {size[1]}"
