"""`bench`: a model's figures by a published protocol, all map methods on pictures whose objects are known, or what every step costs."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from clip_anatomy.data.masked import MaskedDataset
from clip_anatomy.data.masked_datasets import READERS, open_masked
from clip_anatomy.engine.engine import Engine, works_here
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.evaluation.known_objects import BATCH, masked_objects, world_objects
from clip_anatomy.evaluation.map_table import THRESHOLDS, MapTable, map_table
from clip_anatomy.evaluation.protocols import PROTOCOLS, SemanticSettings
from clip_anatomy.evaluation.run_protocol import MethodComparison, ProtocolResult, methods_for, run_protocol
from clip_anatomy.evaluation.speed import PICTURES as AT_ONCE
from clip_anatomy.evaluation.speed import SpeedTable, speed
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import ModelSource, as_clip
from clip_anatomy.progress import Progress
from clip_anatomy.public_functions import public

__all__ = ["bench", "check_options"]

PICTURES = 500  # of the demo world


@public
def bench(
    clip: Clip | ModelSource = "demo",
    name: str = "maps",
    path: str | Path | None = None,
    *,
    method: str | Sequence[str] | None = None,
    like: str | None = None,
    names: str | Path | None = None,
    pictures: int | None = None,
    prompts: int | None = None,
    threshold: str | float | None = None,
    area: float | None = None,
    background: Sequence[str] | None = None,
    side: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    logit_scale: float | None = None,
    text: str | None = None,
    size: int | None = None,
    draws: int | None = None,
    calibrate: int | None = None,
    proposals: str | None = None,
    engine: Engine | str = "local",
    progress: Progress | None = None,
) -> ProtocolResult | MethodComparison | MapTable | SpeedTable:
    """Measure a model by a published protocol, all map methods on pictures whose objects are known, or what every step costs.

    A picture that cannot be measured is named in the result and the others are done. Ctrl-C gives what was measured so far,
    marked as partial.

    Args:
        clip: an opened model, or what `load` opens.
        name: a protocol of PROTOCOLS; or "maps": the table of all methods, on unseen pictures of the demo world, or with `path`
            on a folder of photographs and masks; or "speed": the time of every step beside plain `encode_image`.
        path: where the data set lies.
        method: how maps are drawn; by default the protocol's. Several (a list, or separated by commas), or "all", give a table
            under one protocol.
        like: take the settings that a paper released for this protocol, a name of PAPERS; other options go before them.
        names: a file with a line of texts per class, separated by commas, in the data set's order, the background first where
            there is one.
        pictures: measure this many, evenly spread over the data set; for maps of the demo world 500 by default, for speed a batch of 8.
        prompts: 80 (CLIP's own templates) or 1 ("a photo of a …").
        threshold: least probability of a class before a pixel is background, or "none"; for maps "mean", "half" or "otsu".
        area: least share of what is not background; a class with less is not there.
        background: what the background may be, in words.
        side: pixels of the short side, for protocols with windows.
        window: pixels of a window.
        stride: pixels between windows.
        logit_scale: before the softmax over the classes.
        text: what to look for, for cod10k.
        size: pixels of a side to which pictures are squashed, for cod10k.
        draws: of synonyms, which are measured beside the class names; 5 by default, 0 for none.
        calibrate: choose logit scale and threshold on so many pictures, which are held out and not measured.
        proposals: of refcoco and phrasecut, the regions to choose from: "maps" (our own), "objects" (all that are annotated), or a folder with
            `NAME.json` (COCO's format) or `NAME/*.png` for each picture.
        engine: of protocols: "local", "ray", or an opened one (`open_engine`).
        progress: told texts, pictures and maps.

    Returns:
        Figures with everything that decides them: `print(result)`, `result.to_dict()`, `result.save(folder)`.

    Raises:
        BadInput: an unknown protocol, an option that it does not have, or no picture could be measured.
        BadSpec: a value that an option cannot have.

    Example:
        >>> import clip_anatomy as ca
        >>> [row.method for row in ca.bench("demo", "maps", pictures=2, method=["raw", "surgery"]).rows]
        ['raw', 'surgery']
    """
    given = {
        "prompts": prompts, "side": side, "window": window, "stride": stride, "logit_scale": logit_scale, "text": text,
        "size": size, "area": area, "background": None if background is None else tuple(background), "like": like,
        "names": names, "draws": draws, "calibrate": calibrate, "proposals": proposals,
    }  # fmt: skip
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    maps_only = {"method": method, "threshold": threshold} if name == "speed" else {}
    check_options(
        name, path, pictures, settings | {key: value for key, value in maps_only.items() if value is not None}
    )
    if name != "maps" and threshold is not None:
        settings["threshold"] = _number(threshold)
    methods = [
        one for each in ([method] if isinstance(method, str) else method or []) for one in each.split(",") if one
    ]
    opened = as_clip(clip)
    if name in ("maps", "speed") and not works_here(engine):
        raise BadSpec(f"{name} is measured in one process. Leave engine= out, or type a protocol")
    if name == "speed":
        return speed(opened, pictures or AT_ONCE, progress=progress)
    if name == "maps":
        chosen, cut = None if methods in ([], ["all"]) else methods, str(threshold or "mean")
        return _table(opened, path, chosen, pictures=pictures, prompts=prompts or 80, threshold=cut, progress=progress)
    assert path is not None
    outcomes: list[ProtocolResult] = []
    for one in methods_for(opened, name) if methods == ["all"] else methods or [None]:
        further: dict[str, Any] = settings if one is None else {**settings, "method": one}
        outcomes.append(run_protocol(opened, name, path, limit=pictures, engine=engine, progress=progress, **further))
        if outcomes[-1].partial:
            break
    return MethodComparison(tuple(outcomes)) if len(outcomes) > 1 else outcomes[0]


def check_options(name: str, path: str | Path | None, pictures: int | None, settings: dict[str, Any]) -> None:
    """Refuse what cannot be meant, before a model is opened.

    Raises:
        BadInput: an unknown protocol, no data set, or an option that the protocol does not have.
    """
    if pictures is not None and pictures < 1:
        raise BadInput(f"pictures={pictures}: at least one. Type pictures=100")
    if name not in ("maps", "speed", *PROTOCOLS):
        raise BadInput(f"the protocol {name!r} is not known. Type one of: maps, speed, {', '.join(PROTOCOLS)}")
    if name == "speed":
        if path is not None:
            raise BadInput(f"speed draws its own pictures and reads none of {path}. Type: clip-anatomy bench speed")
        known, further = list[str](), ["pictures"]
    elif name == "maps":  # the demo world has prompts of its own
        known, further = ["prompts"] if path is not None else [], ["method", "pictures", "threshold"]
    else:
        known, further = [f.name for f in fields(PROTOCOLS[name].settings)], ["pictures"]
        if isinstance(PROTOCOLS[name].settings, SemanticSettings):
            known += ["like", "names", "calibrate"]
    for other in (one for one in settings if one not in known):
        raise BadInput(
            f"{other}= is not an option of {name}. Type one of: {', '.join(f'{one}=' for one in (*known, *further))}"
        )
    if name not in ("maps", "speed") and path is None:
        where = READERS[PROTOCOLS[name].dataset].where
        raise BadInput(f"{name} needs its data set: clip-anatomy bench {name} PATH. {where}")


def _table(
    clip: Clip,
    path: str | Path | None,
    methods: list[str] | None,
    *,
    pictures: int | None,
    prompts: int,
    threshold: str,
    progress: Progress | None,
) -> MapTable:
    skipped: list[tuple[str, str]] = []
    if path is None:
        count = PICTURES if pictures is None else pictures
        batches, total = world_objects(clip, count), -(-count // BATCH)
        source = "demo world, unseen pictures of one object, asked by colour and shape"
    else:
        data = open_masked("sample", path)
        assert isinstance(data, MaskedDataset)
        batches = masked_objects(clip, data, prompts=prompts, limit=pictures, skipped=skipped, progress=progress)
        total = len(data) if pictures is None else min(pictures, len(data))
        source = f"{data.name}, {prompts} prompts"
    table = map_table(clip, batches, methods, threshold=threshold, total=total, progress=progress)
    if not any(row.maps or row.why for row in table.rows):
        why = f" The first, {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise BadInput(f"no picture of {path} could be measured.{why} Type a folder with images and masks")
    configuration = {
        "data": source,
        "pictures": f"{table.pictures:,}",
        "model": clip.name,
        "weights": clip.digest,
        "resolution": "patches of {} × {} pixels, input {} × {}".format(*clip.patch, *clip.preprocess.size),
        "foreground": THRESHOLDS[threshold],
        "mask": "a patch is the object's when at least half of it is",
    }
    return replace(table, configuration=configuration, skipped=tuple(skipped))


def _number(threshold: str | float) -> float | None:
    if threshold == "none":
        return None
    try:
        return float(threshold)
    except ValueError as error:
        raise BadSpec(f"threshold={threshold} is no number. Type threshold=0.1, or threshold=none") from error
