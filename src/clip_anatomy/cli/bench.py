"""`clip-anatomy bench`: figures of a published protocol with everything that decides them, all map methods in one table, what every step costs."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from clip_anatomy.cli.options import AsJson, Device, Dtype, EngineOptions, Model, Weights, print_json

STOPPED = 130


def bench(
    name: str = "maps",
    path: Path | None = None,
    *,
    list_them: Annotated[bool, Parameter(name="--list")] = False,
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
    draws: int | None = None,
    calibrate: int | None = None,
    proposals: str | None = None,
    classes: bool = False,
    model: Model = "demo",
    weights: Weights = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    where: EngineOptions = EngineOptions(),
) -> int:
    """Measure a model by a published protocol, all map methods on pictures whose objects are known, or what every step costs.

    Every result is printed with its whole configuration. Without a name, or with "maps": the table of all map methods on unseen
    pictures of the demo world; with a path too, on the photographs and masks of a folder. A picture that cannot be measured is
    named and counted, the others are done. With "speed": the time of every step beside the model's own plain encode_image, with
    quartiles over rounds in which all take turns. Ctrl-C prints what was measured so far, marked as partial.

        clip-anatomy bench --list
        clip-anatomy bench voc20 VOC2012 --model MODEL --method sclip
        clip-anatomy bench voc21 VOC2012 --model MODEL --like sclip --names FILE
        clip-anatomy bench voc20 VOC2012 --model MODEL --method all --pictures 200
        clip-anatomy bench maps --pictures 500
        clip-anatomy bench maps FOLDER --model MODEL
        clip-anatomy bench speed --model MODEL

    Args:
        name: a protocol of --list, or maps, or speed.
        path: where its data set lies; NAME:PATH in one word works too.
        list_them: print the protocols, and where their data sets come from.
        method: how maps are drawn; by default the protocol's. Several (repeat it, or separate by commas), or all, give a table under one protocol.
        like: take the settings that a paper released for this protocol: sclip | clearclip | naclip | scclip | rfclip | resclip | pearl. Other options go before them.
        names: a file with a line of texts per class, separated by commas, in the data set's order, the background first where there is one: the form of the lists that papers publish. By default the data set's own names.
        pictures: measure this many, evenly spread over the data set; for maps of the demo world 500 by default, for speed a batch of 8.
        prompts: 80 (CLIP's own templates) or 1 (a photo of a …).
        threshold: least probability of a class before a pixel is background, or none; for maps: mean | half | otsu.
        area: least share of what is not background; a class with less is not there.
        background: what the background may be, in words; repeat it.
        side: pixels of the short side, for protocols with windows.
        window: pixels of a window.
        stride: pixels between windows.
        logit_scale: before the softmax over the classes.
        text: of the object to find, for cod10k.
        size: pixels of a side to which pictures are squashed, for cod10k.
        draws: of synonyms, which are measured beside the class names; 5 by default, 0 for none.
        calibrate: choose logit scale and threshold on so many pictures, which are held out and not measured.
        proposals: for refcoco and phrasecut, the regions to choose from: maps (our own) | objects (all that are annotated) | a folder with NAME.json (COCO's format) or NAME/*.png for each picture.
        classes: print the figure of every class too.

    Returns:
        Exit code: 0 done, 130 stopped with Ctrl-C after some pictures.
    """
    from clip_anatomy.cli.wording import in_cli_words
    from clip_anatomy.evaluation.protocols import protocol_list, protocol_summary
    from clip_anatomy.progress import note, say, shown

    if list_them:
        print_json(protocol_list()) if as_json else say(protocol_summary())
        return 0
    if path is None and ":" in name:
        name, path = name.split(":", 1)[0], Path(name.split(":", 1)[1])
    given: dict[str, Any] = {
        "like": like, "names": names, "prompts": prompts, "area": area, "background": background, "side": side,
        "window": window, "stride": stride, "logit_scale": logit_scale, "text": text, "size": size,
        "draws": draws, "calibrate": calibrate, "proposals": proposals,
    }  # fmt: skip
    from clip_anatomy.evaluation import bench as library
    from clip_anatomy.evaluation.run_protocol import ProtocolResult

    refused = given | ({"method": method, "threshold": threshold} if name == "speed" else {})
    library.check_options(name, path, pictures, {key: value for key, value in refused.items() if value is not None})
    with shown(f"opening {model}") as progress, where.open() as engine:
        from clip_anatomy.loading.load import load

        clip = load(model, weights=weights, device=device, dtype=dtype)
        result = library.bench(
            clip,
            name,
            path,
            method=method,
            pictures=pictures,
            threshold=threshold,
            engine=engine,
            progress=progress,
            **given,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        say(result.summary(classes=classes) if isinstance(result, ProtocolResult) else result.summary())
    for line in result.notes():
        note(in_cli_words(line))
    return STOPPED if result.partial else 0
