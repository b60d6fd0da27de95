"""`heatmap`: every method behind one function."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from clip_anatomy.data.picture_batches import Failed, Pictures, picture_batches
from clip_anatomy.engine.engine import Engine, works_here
from clip_anatomy.errors import BadSpec
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.images.input_size import Size
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import ModelSource, as_clip
from clip_anatomy.loading.registered_clip import registered
from clip_anatomy.maps.attention_sinks import sinks_of, without_sinks
from clip_anatomy.maps.automatic import AUTO, chosen_method
from clip_anatomy.maps.contrast import NEUTRAL, Against, Contrast
from clip_anatomy.maps.dense_attention import DenseAttention
from clip_anatomy.maps.map_result import MapRun, Maps
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.maps.maps_on_workers import maps_on_workers
from clip_anatomy.maps.proxyclip import ProxyOptions
from clip_anatomy.maps.registry import CUSTOM, METHODS, Method, dense_method, method_of
from clip_anatomy.maps.windows import Windows, WindowSize, slid
from clip_anatomy.progress import Progress
from clip_anatomy.public_functions import public

__all__ = ["METHODS", "Maps", "heatmap"]

BATCH = 16


@public
def heatmap(
    clip: Clip | ModelSource,
    images: Pictures,
    texts: Sequence[str] | Tensor | Texts,
    method: str | DenseAttention = AUTO,
    *,
    against: Against | Contrast = NEUTRAL,
    templates: Sequence[str] | None = None,
    size: Size = None,
    window: WindowSize = None,
    stride: WindowSize = None,
    replace_sinks: bool = False,
    registers: int = 0,
    allow_urls: bool = False,
    skip_bad: bool = False,
    engine: Engine | str = "local",
    progress: Progress | None = None,
    **options: Any,
) -> Maps:
    """Show where in each image each text is answered.

    `METHODS` has every method with one line of what it is, its options and their defaults.

    Args:
        clip: an opened model, or what `load` opens.
        images: paths (of a folder all pictures in it), PIL images, arrays, or a preprocessed tensor [image, 3, row, col] of any
            size in patches.
        texts: strings, or embeddings [text, embed] of any length; `Texts.of(clip, texts)` embeds strings once for many calls.
        method: a name of METHODS, or a `DenseAttention` of your own. "auto" is the decomposition: where the model read the text, in exact
            shares. Which map for what: that one to explain an answer, "grad_eclip" for what the class token's last block would change
            by, "scclip" for which text each place belongs to, "attention" for where it looked whatever the text.
        against: what is subtracted from every text, where the method compares (decomposition, surgery): "neutral", the mean of
            descriptions of anything; "each other", the mean of these texts, as published (of two texts the second map mirrors the
            first); "nothing"; a text, "" for the empty one; texts, or embeddings, for their mean. `maps.subtracted` says it in words.
        templates: prompts with one `{}` each, averaged as CLIP's own recipe does.
        size: None looks through the model's own resize and crop; "whole" crops nothing, with the model's own short side; a
            number makes that the short side; (row, col) squashes. Sides are rounded to whole patches.
        window: look through windows of so many pixels a side and average where they overlap: for large pictures, each window
            at the size the model was trained on. Without `size` the picture keeps its own pixels.
        stride: pixels from one window to the next; half a window by default.
        replace_sinks: give patches that the model looks at whatever they show (see `sinks`) the mean of the places around them;
            one more forward.
        registers: give the model so many registers at test time: what it keeps in patches that show nothing goes there, see
            `registered`.
        allow_urls: fetch http(s) addresses.
        skip_bad: leave out pictures that cannot be used (`maps.run.failed` names them) instead of raising at the first.
        engine: "local", "ray", or an opened one (`open_engine`), whose workers look at 64 pictures at a time.
        progress: told how many pictures are done.
        **options: of the method.

    Returns:
        Maps at patch resolution; `maps.on_picture(i)` lays them on the original pixels.

    Raises:
        UnsupportedModel: a method that has no meaning on this kind of model.
        BadSpec: unknown method, an option it does not have, or a value it cannot take.
        BadText: no text, one that is blank or stands twice.
        BadImage: an image cannot be used.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> maps = heatmap(ca.load("demo"), examples()[:1], ["a bird", "the sky"], method="surgery")
        >>> maps.values.shape
        torch.Size([1, 2, 8, 8])
    """
    clip = as_clip(clip)
    if not works_here(engine):
        same = {
            "against": against,
            "size": size,
            "window": window,
            "stride": stride,
            "replace_sinks": replace_sinks,
            "registers": registers,
        }
        made = maps_on_workers(
            engine, clip, heatmap, _without_run, images=images, texts=[Texts.of(clip, texts, templates)], method=method, skip_bad=skip_bad, allow_urls=allow_urls,
            progress=progress, **same, **options,
        )  # fmt: skip
        return made.joined(made.parts)
    clip = registered(clip, registers) if registers else clip
    chosen, name, option = _chosen(clip, method, options)
    wanted = Texts.of(clip, texts, templates)
    option, subtracted = _contrasted(clip, chosen, option, wanted, against, name=name)
    patch = clip.patch
    windows = None if window is None else Windows.of(window, stride, patch)
    if stride is not None and windows is None:
        raise BadSpec(f"stride={stride!r} is the step between windows. Type also: window={clip.preprocess.size[0]}")

    def maps_of(pixels: Tensor, images: list[int]) -> Tensor:
        with torch.no_grad():
            of_images = option.of_images(images) if isinstance(option, ProxyOptions) else option
            maps = chosen.run(clip, pixels, wanted.embeddings, of_images)
        values = maps.transpose(1, 2).unflatten(2, patch_grid(pixels.shape, patch)).float()
        return without_sinks(values, sinks_of(clip.vision, pixels).mask) if replace_sinks else values

    given = {"window": window, "stride": stride, "replace_sinks": replace_sinks or None}
    given |= {"against": None if isinstance(against, Tensor | Contrast) or against == NEUTRAL else against}
    run = MapRun(clip, size, {**{k: v for k, v in given.items() if v is not None}, **options})
    parts: list[Maps] = []
    places: list[int] = []
    failed: list[Failed] | None = [] if skip_bad else None
    notes: list[str] = []
    for batch in picture_batches(
        clip, images, size, BATCH, own=windows is not None, allow_urls=allow_urls, failed=failed, notes=notes, progress=progress
    ):  # fmt: skip
        if windows is None:
            values = maps_of(batch.pixels, list(batch.places))
        else:
            values = slid(
                batch.pixels, windows, patch, lambda x, i, of=batch.places: maps_of(x, [of[j] for j in i]), BATCH
            )
        parts.append(Maps(values, name, wanted.names, batch.geometries, batch.pictures, run, subtracted))
        places += batch.places
    return replace(
        Maps.joined(parts).in_order(places), run=replace(run, failed=tuple(failed or ()), notes=tuple(notes))
    )


def _without_run(maps: Maps) -> tuple[Maps, MapRun]:
    assert maps.run is not None
    return replace(maps, values=maps.values.cpu(), run=None), maps.run


def _contrasted(
    clip: Clip, chosen: Method, option: Any, texts: Texts, against: Against | Contrast, *, name: str
) -> tuple[Any, str]:
    """Return the method's options with what is subtracted from the texts, and that in words."""
    if chosen.contrasts:
        contrast = texts.contrast(clip, against, option.ALONE)
        return replace(option, against=contrast), contrast.description
    if not (isinstance(against, str) and against == NEUTRAL):
        raise BadSpec(
            f"method {name!r} compares texts with nothing. Type: method='decomposition', or leave against= out"
        )
    return option, ""


def _chosen(clip: Clip, method: str | DenseAttention, given: dict[str, Any]) -> tuple[Method, str, Any]:
    if isinstance(method, DenseAttention):
        if given:
            raise BadSpec(
                f"a DenseAttention holds its own options. Type: dataclasses.replace(attention, {next(iter(given))}=...)"
            )
        return dense_method(clip), CUSTOM, method
    name = chosen_method(clip).method if method == AUTO else method
    entry = method_of(clip, name)
    return entry, name, entry.chosen(name, given)
