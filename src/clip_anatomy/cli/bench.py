"""`clip-anatomy bench`: figures of a published protocol with everything that decides them, and all map methods in one table."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def bench(
    name: str = "maps",
    path: Path | None = None,
    *,
    list_them: Annotated[bool, Parameter(name="--list")] = False,
    model: Annotated[str, Parameter(alias="-m")] = "demo",
    weights: str | None = None,
    method: list[str] | None = None,
    like: str | None = None,
    names: Path | None = None,
    pictures: int | None = None,
    prompts: int | None = None,
    threshold: str | None = None,
    area: float | None = None,
    background: list[str] | None = None,
    side: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    logit_scale: float | None = None,
    text: Annotated[str | None, Parameter(alias="-t")] = None,
    size: int | None = None,
    classes: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    device: str = "auto",
    dtype: str = "float32",
) -> int:
    """Measure a model by a published protocol, or all map methods on pictures whose objects are known.

    Every result is printed with its whole configuration. Without a name, or with "maps": the table of all map methods on unseen
    pictures of the demo world; with a path too, on the photographs and masks of a folder. A picture that cannot be measured is
    named and counted, the others are done. Ctrl-C prints what was measured so far, marked as partial.

        clip-anatomy bench --list
        clip-anatomy bench voc20 VOC2012 --model MODEL --method sclip
        clip-anatomy bench voc21 VOC2012 --model MODEL --like sclip --names FILE
        clip-anatomy bench voc20 VOC2012 --model MODEL --method all --pictures 200
        clip-anatomy bench maps --pictures 500
        clip-anatomy bench maps FOLDER --model MODEL

    Args:
        name: a protocol of --list, or maps.
        path: where its data set lies; NAME:PATH in one word works too.
        list_them: print the protocols, and where their data sets come from.
        model: demo | open_clip:NAME/TAG | open_clip:NAME with --weights | hf:ORG/NAME | a folder or file with a saved model.
        weights: a checkpoint file for open_clip:NAME.
        method: how maps are drawn; by default the protocol's. Several (repeat it, or separate by commas), or all, give a table under one protocol.
        like: take the settings that a paper released for this protocol: sclip | clearclip | naclip. Other options go before them.
        names: a file with a line of texts per class, separated by commas, in the data set's order, the background first where there is one: the form of the lists that papers publish. By default the data set's own names.
        pictures: measure this many, evenly spread over the data set; for maps of the demo world 500 by default.
        prompts: 80 (CLIP's own templates) or 1 (a photo of a …).
        threshold: least probability of a class before a pixel is background, or none; for maps: mean | half | otsu.
        area: least share of what is not background; a class with less is not there.
        background: what the background may be, in words; repeat it.
        side: pixels of the short side, for protocols with windows.
        window: pixels of a window.
        stride: pixels between windows.
        logit_scale: before the softmax over the classes.
        text: what to look for, for cod10k.
        size: pixels of a side to which pictures are squashed, for cod10k.
        classes: print the figure of every class too.
        as_json: print everything as JSON.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: float32, float16, bfloat16 or float64.

    Returns:
        Exit code: 0 done, 130 stopped with Ctrl-C after some pictures.
    """
    from clip_anatomy.progress import progress
    from clip_anatomy.report.step_progress import stages

    if list_them:
        from clip_anatomy.report.bench_protocols import list_protocols

        return list_protocols(as_json=as_json)
    methods = [one for word in method or [] for one in word.split(",") if one]
    name, inside = _named(name)
    place = path if path is not None else inside
    given = {
        "prompts": prompts, "side": side, "window": window, "stride": stride, "logit_scale": logit_scale, "text": text,
        "size": size, "area": area, "background": None if background is None else tuple(background), "like": like,
        "names": names,
    }  # fmt: skip
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if name != "maps" and threshold is not None:
        settings["threshold"] = _number(threshold)
    _check(name, place, pictures, settings)
    with progress(f"opening {model}"):
        from clip_anatomy.loading.load import load

        clip = load(model, weights=weights, device=device, dtype=dtype)
    if name == "maps":
        from clip_anatomy.report.bench_maps import bench_maps, tell_maps

        asked = None if methods in ([], ["all"]) else methods
        number = settings.get("prompts", 80)
        with stages() as tell:
            table, config, lost = bench_maps(
                clip, place, asked, pictures=pictures, prompts=number, threshold=threshold or "mean", tell=tell
            )
        return tell_maps(table, config, lost, as_json=as_json)
    from clip_anatomy.errors import BadSpec
    from clip_anatomy.evaluation.run_protocol import methods_for, run
    from clip_anatomy.report.bench_protocols import compare, tell_outcome

    assert place is not None
    outcomes = []
    with stages() as tell:
        for one in methods_for(clip, name) if methods == ["all"] else methods or [None]:
            further = settings if one is None else {**settings, "method": one}
            try:
                outcomes.append(run(clip, name, place, limit=pictures, report=tell, **further))
            except BadSpec as error:
                raise BadSpec(_as_options(str(error), settings)) from error
            if outcomes[-1].partial:
                break
    if len(outcomes) > 1:
        return compare(outcomes, as_json=as_json)
    return tell_outcome(outcomes[0], classes=classes, as_json=as_json)


def _check(name: str, place: Path | None, pictures: int | None, settings: dict[str, Any]) -> None:
    """Refuse what cannot be meant before a model is opened."""
    from dataclasses import fields

    from clip_anatomy.data.masked_datasets import READERS
    from clip_anatomy.errors import BadInput
    from clip_anatomy.evaluation.protocols import PROTOCOLS, SemanticSettings

    if pictures is not None and pictures < 1:
        raise BadInput(f"--pictures {pictures}: at least one. Type --pictures 100")
    if name not in ("maps", *PROTOCOLS):
        raise BadInput(f"the protocol {name!r} is not known. Type one of: maps, {', '.join(PROTOCOLS)}")
    if name == "maps":  # the demo world has prompts of its own
        known, further = ["prompts"] if place is not None else [], ["method", "pictures", "threshold"]
    else:
        known, further = [f.name for f in fields(PROTOCOLS[name].settings)], ["pictures"]
        if isinstance(PROTOCOLS[name].settings, SemanticSettings):
            known += ["like", "names"]
    for other in (one for one in settings if one not in known):
        options = ", ".join(f"--{one.replace('_', '-')}" for one in (*known, *further))
        raise BadInput(f"--{other.replace('_', '-')} is not an option of {name}. Type one of: {options}")
    if name == "maps":
        return
    if place is None:
        where = READERS[PROTOCOLS[name].dataset].where
        raise BadInput(f"{name} needs its data set: clip-anatomy bench {name} PATH. {where}")


def _as_options(message: str, settings: dict[str, Any]) -> str:
    """Settings as they are typed here: "window=96" → "--window 96"."""
    import re

    words = "|".join(settings) or "prompts"
    return re.sub(rf"\b({words})=([^\s.]+(?:\.\d+)?)", lambda m: f"--{m[1].replace('_', '-')} {m[2]}", message)


def _named(name: str) -> tuple[str, Path | None]:
    """NAME or NAME:PATH."""
    word, colon, rest = name.partition(":")
    return (word, Path(rest)) if colon and rest else (name, None)


def _number(text: str) -> float | None:
    from clip_anatomy.errors import BadInput

    if text == "none":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise BadInput(f"--threshold {text} is no number. Type --threshold 0.1, or --threshold none") from error
