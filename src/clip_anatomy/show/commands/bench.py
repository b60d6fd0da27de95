"""`clip-anatomy bench`: figures of a published protocol with everything that decides them, and all map methods in one table."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from clip_anatomy.measure.run import Outcome
    from clip_anatomy.measure.world_maps import MapScore
    from clip_anatomy.model.clip import Clip

SHOWN = 8  # skipped pictures that are named one by one
STOPPED = 130


def bench(
    name: str = "maps",
    path: Path | None = None,
    *,
    list_them: Annotated[bool, Parameter(name="--list")] = False,
    model: Annotated[str, Parameter(alias="-m")] = "demo",
    weights: str | None = None,
    method: list[str] | None = None,
    pictures: int | None = None,
    prompts: int | None = None,
    threshold: str | None = None,
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
        clip-anatomy bench voc20 VOCdevkit/VOC2012 --model open_clip:ViT-B-16-quickgelu/openai --method sclip
        clip-anatomy bench voc20 VOCdevkit/VOC2012 --model open_clip:ViT-B-16/laion2b_s34b_b88k --method all --pictures 200
        clip-anatomy bench maps --pictures 500
        clip-anatomy bench maps FOLDER --model open_clip:ViT-B-16/laion2b_s34b_b88k

    Args:
        name: a protocol of --list, or maps.
        path: where its data set lies; NAME:PATH in one word works too.
        list_them: print the protocols, and where their data sets come from.
        model: demo | open_clip:NAME/TAG | open_clip:NAME with --weights | hf:ORG/NAME | a folder or file with a saved model.
        weights: a checkpoint file for open_clip:NAME.
        method: how maps are drawn; by default the protocol's. Repeat it, or type all, for a table of several under one protocol.
        pictures: measure this many, evenly spread over the data set; for maps of the demo world 500 by default.
        prompts: 80 (CLIP's own templates) or 1 (a photo of a …).
        threshold: least probability of a class before a pixel is background; for maps: mean | half | otsu.
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
    from clip_anatomy.show.progress import progress
    from clip_anatomy.show.stages import stages

    if list_them:
        return _list(as_json)
    name, inside = _named(name)
    place = path if path is not None else inside
    given = {
        "prompts": prompts, "side": side, "window": window, "stride": stride, "logit_scale": logit_scale, "text": text,
        "size": size,
    }  # fmt: skip
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if name != "maps" and threshold is not None:
        settings["threshold"] = _number(threshold)
    _check(name, place, pictures, settings)
    with progress(f"opening {model}"):
        from clip_anatomy.model.load import load

        clip = load(model, weights=weights, device=device, dtype=dtype)
    with stages() as tell:
        if name == "maps":
            return _maps(
                clip, place, method, pictures, settings, threshold=threshold or "mean", as_json=as_json, tell=tell
            )
        from clip_anatomy.measure.run import methods_for, run

        assert place is not None
        chosen = methods_for(clip, name) if method == ["all"] else method or [None]
        outcomes: list[Outcome] = []
        for one in chosen:
            further = settings if one is None else {**settings, "method": one}
            outcomes.append(run(clip, name, place, limit=pictures, report=tell, **further))
            if outcomes[-1].partial:
                break
    if len(outcomes) > 1:
        return _compare(outcomes, as_json=as_json)
    return _tell(outcomes[0], classes=classes, as_json=as_json)


def _check(name: str, place: Path | None, pictures: int | None, settings: dict[str, Any]) -> None:
    """Refuse what cannot be meant before a model is opened."""
    from dataclasses import fields

    from clip_anatomy.errors import BadInput
    from clip_anatomy.measure.datasets.registry import READERS
    from clip_anatomy.measure.protocols import PROTOCOLS

    if pictures is not None and pictures < 1:
        raise BadInput(f"--pictures {pictures}: at least one. Type --pictures 100")
    if name not in ("maps", *PROTOCOLS):
        raise BadInput(f"the protocol {name!r} is not known. Type one of: maps, {', '.join(PROTOCOLS)}")
    known = ["prompts"] if name == "maps" else [f.name for f in fields(PROTOCOLS[name].settings)]
    for other in (one for one in settings if one not in known):
        options = ", ".join(f"--{one.replace('_', '-')}" for one in known)
        raise BadInput(f"--{other.replace('_', '-')} is not an option of {name}. Type one of: {options}")
    if name == "maps":
        return
    if place is None:
        where = READERS[PROTOCOLS[name].dataset].where
        raise BadInput(f"{name} needs its data set: clip-anatomy bench {name} PATH. {where}")


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


def _list(as_json: bool) -> int:
    from dataclasses import asdict
    from textwrap import fill

    from clip_anatomy.measure.datasets.registry import READERS
    from clip_anatomy.measure.protocols import PROTOCOLS
    from clip_anatomy.show.staging import as_json as json_text

    if as_json:
        rows = {
            name: {"told": p.told, "get it": READERS[p.dataset].where, "settings": asdict(p.settings)}
            for name, p in PROTOCOLS.items()
        }
        print(json_text({"schema": "clip-anatomy/protocols/1", **rows}), end="")
        return 0
    print(f"{'maps':<22}all map methods in one table: the demo world (nothing to get), or a folder as for coco-sample")
    for name, protocol in PROTOCOLS.items():
        print(f"{name:<22}{protocol.told}")
    print("\nWhere the data come from")
    places: dict[str, list[str]] = {}
    for name, protocol in PROTOCOLS.items():
        places.setdefault(READERS[protocol.dataset].where, []).append(name)
    for where, names in places.items():
        print(f"\n{', '.join(names)}\n{fill(where + '.', 100, initial_indent='    ', subsequent_indent='    ')}")
    return 0


def _maps(
    clip: "Clip",
    place: Path | None,
    methods: list[str] | None,
    pictures: int | None,
    settings: dict[str, Any],
    *,
    threshold: str,
    as_json: bool,
    tell: Callable[[str, int, int], None],
) -> int:
    from dataclasses import asdict
    from math import isfinite

    from clip_anatomy.errors import BadInput
    from clip_anatomy.measure.world_maps import cases_of_masks, cases_of_world, map_table
    from clip_anatomy.show.progress import note
    from clip_anatomy.show.staging import as_json as json_text

    prompts = settings.pop("prompts", 80)
    skipped: list[tuple[str, str]] = []
    tell("reading pictures", 0, 1)
    if place is None:
        count = 500 if pictures is None else pictures
        cases = list(cases_of_world(clip, count))
        said = f"demo world, {count} unseen pictures of one object, asked by colour and shape"
    else:
        from clip_anatomy.measure.datasets.masked import Masked
        from clip_anatomy.measure.datasets.registry import open_masked

        data = open_masked("sample", place)
        assert isinstance(data, Masked)
        cases = list(cases_of_masks(clip, data, prompts=prompts, limit=pictures, skipped=skipped))
        said = f"{data.name}, {len(cases)} pictures, {prompts} prompts"
        if not any(case.asked for case in cases):
            why = f" The first, {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
            raise BadInput(f"no picture of {data.name} could be measured.{why} Type a folder with images and masks")
    config = {
        "data": said,
        "model": clip.name,
        "weights": clip.digest,
        "resolution": "patches of {} × {} pixels, input {} × {}".format(*clip.patch, *clip.preprocess.size),
        "foreground": {
            "mean": "above the map's mean",
            "half": "above half of the map's range",
            "otsu": "Otsu's threshold",
        }.get(threshold, threshold),
        "mask": "a patch is the object's when at least half of it is",
    }
    rows = map_table(clip, cases, methods, threshold=threshold, report=tell)
    if as_json:
        table = [
            {k: (v if not isinstance(v, float) or isfinite(v) else None) for k, v in asdict(r).items()} for r in rows
        ]
        lost = [{"id": one, "why": why} for one, why in skipped]
        print(
            json_text({"schema": "clip-anatomy/bench-maps/1", "configuration": config, "rows": table, "skipped": lost}),
            end="",
        )
    else:
        _configuration(config)
        _map_rows(rows)
    _skipped(tuple(skipped), note)
    return 0


def _map_rows(rows: "tuple[MapScore, ...]") -> None:
    from rich.console import Console
    from rich.table import Table

    view = Table(box=None, pad_edge=False)
    view.add_column("method", style="bold", no_wrap=True)
    for column in ("mIoU", "object IoU", "pixel accuracy", "AP", "pointing", "seconds"):
        view.add_column(column, justify="right")
    for row in rows:
        if row.why:
            view.add_row(row.method, row.why)
            continue
        shares = (row.mean_iou, row.foreground_iou, row.pixel_accuracy, row.average_precision, row.pointing)
        view.add_row(row.method, *(f"{100 * v:.1f} %" for v in shares), f"{row.seconds:.2f}")
    Console(highlight=False).print(view)


def _tell(found: "Outcome", *, classes: bool, as_json: bool) -> int:
    from math import isnan

    from clip_anatomy.show.progress import note
    from clip_anatomy.show.staging import as_json as json_text

    if as_json:
        print(json_text(found.to_dict()), end="")
    else:
        _configuration(found.configuration)
        print()
        if classes:
            for name, value in found.per_class.items():
                print(f"  {name:<28}{'–' if isnan(value) else f'{100 * value:6.2f} %'}")
            print()
        for name, value in found.figures.items():
            # Saliency measures are told as shares, the others in per cent, as their papers do.
            print(f"{name:<28}{value:8.3f}" if "MAE" in found.figures else f"{name:<28}{100 * value:8.2f} %")
        print(f"{'pictures measured':<28}{found.pictures:8,}")
        if found.skipped:
            print(f"{'pictures skipped':<28}{len(found.skipped):8,}")
        print(f"{'seconds':<28}{found.seconds:8.1f}")
    _skipped(found.skipped, note)
    if found.partial:
        note("stopped: these figures are PARTIAL, of the pictures measured so far")
    return STOPPED if found.partial else 0


def _compare(outcomes: "list[Outcome]", *, as_json: bool) -> int:
    """Several methods under one protocol: what they share once, then a row each."""
    from rich.console import Console
    from rich.table import Table

    from clip_anatomy.show.progress import note
    from clip_anatomy.show.staging import as_json as json_text

    last = outcomes[-1]
    if as_json:
        rows = [one.to_dict() for one in outcomes]
        print(
            json_text({"schema": "clip-anatomy/bench-methods/1", "protocol": last.protocol, "outcomes": rows}), end=""
        )
    else:
        _configuration({k: v for k, v in last.configuration.items() if k not in ("method", "method options")})
        view = Table(box=None, pad_edge=False)
        view.add_column("\nmethod", style="bold")
        for name in (*last.figures, "pictures", "seconds"):
            view.add_column(f"\n{name}", justify="right")
        for one in outcomes:
            shares = [f"{v:.3f}" if "MAE" in one.figures else f"{100 * v:.2f} %" for v in one.figures.values()]
            mark = " (partial)" if one.partial else ""
            view.add_row(one.configuration["method"] + mark, *shares, f"{one.pictures:,}", f"{one.seconds:.1f}")
        Console(highlight=False).print(view)
    _skipped(last.skipped, note)
    if last.partial:
        note("stopped: the last method is PARTIAL, of the pictures measured so far")
    return STOPPED if last.partial else 0


def _configuration(config: dict[str, Any]) -> None:
    """Every setting on a line."""
    for key, value in config.items():
        if value is None or (isinstance(value, list | tuple) and not value):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k}={v}" for k, v in value.items())  # noqa: PLW2901
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value))  # noqa: PLW2901
        print(f"{key:<28}{value}")


def _skipped(skipped: tuple[tuple[str, str], ...], note: Callable[[str], None]) -> None:
    for name, why in skipped[:SHOWN]:
        note(f"skipped {name}: {why}")
    if len(skipped) > SHOWN:
        note(f"and {len(skipped) - SHOWN} more were skipped: --json names them all")
