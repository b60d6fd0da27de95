"""Figures and folder of an ablation: accuracy as parts are replaced, against the whole model."""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clip_anatomy.atomic_output import AtomicOutput, Kind, as_json, atomic_output
from clip_anatomy.edits.replacement import BYS
from clip_anatomy.errors import BadInput, ClipAnatomyError, OutputError
from clip_anatomy.files import read_json
from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.report.figures import FAINT, INK, LINE, NO_INK, YES_INK, Canvas, canvas, draw_grid, png
from clip_anatomy.report.html import notebook_figures
from clip_anatomy.studies.ablate import SCHEMA, Ablation
from clip_anatomy.studies.ablation_study import SELECTED, STUDIES
from clip_anatomy.studies.study_result import Effect, Study
from clip_anatomy.studies.worst_group import LEAST_IMAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["KIND", "check_folder", "draw_study", "figure", "html", "save", "write"]

RESULT = "ablate.json"

WIDE, TALL, HEAD, FOOT = 9.6, 4.2, 1.15, 0.85  # inches
BAR = 0.3  # inches of a bar
BARS = 24  # bars that a figure has room for
HELPS, COSTS = YES_INK, NO_INK


def _figure_name(study: str, by: str) -> str:
    """Name of a study's figure: that of the study, and of its baseline where that is no mean."""
    return study if by == "mean" else f"{study}-{by}"


KIND = Kind(
    "ablate",
    RESULT,
    SCHEMA,
    (*(f"{_figure_name(name, by)}.png" for name in (*STUDIES, SELECTED) for by in BYS), RESULT),
)


def save(result: Ablation | Study, folder: Path) -> Path:
    """Write a figure of each study and ablate.json into a folder; see `Result.save`."""
    check_folder(folder, _studies(result)[0].store)
    with atomic_output(folder, KIND) as output:
        write(result, output)
    return folder


def write(result: Ablation | Study, output: AtomicOutput) -> None:
    """Write the same into an atomic output, whose place may hold earlier studies of the store.

    An earlier study is replaced by one that asks the same (parts, baseline, classes, groups); any other one stays, and the new one gets
    a number where both would be called alike.
    """
    earlier = _earlier(output.out)
    new: dict[str, Study] = {}
    for one in _studies(result):
        name = _free_name(one.to_dict(), {**earlier, **{name: study.to_dict() for name, study in new.items()}})
        earlier.pop(name, None)
        new[name] = one
    for name in earlier:
        if (drawn := output.out / f"{name}.png").is_file():
            output.write(drawn.name, drawn.read_bytes())
    for name, one in new.items():
        output.write(f"{name}.png", draw_study(one))
    rows = [*earlier.values(), *({**one.to_dict(), "figure": f"{name}.png"} for name, one in new.items())]
    output.write(RESULT, as_json({"schema": SCHEMA, "studies": rows}))


def _free_name(study: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of a study's figure: that of the study which asked the same, or the first one that is free."""
    base = _figure_name(study["name"], study["by"])
    names = (base if number == 1 else f"{base}-{number}" for number in count(1))
    return next(name for name in names if name not in known or _question(known[name]) == _question(study))


def _question(study: Mapping[str, Any]) -> str:
    """Return what a study asked, apart from its answers."""
    values = [study[name] for name in ("name", "by", "baseline", "column", "classes", "group_column", "images")]
    return json.dumps([*values, [one["description"] for one in study["effects"]]])


def check_folder(folder: Path, store: str | Path) -> None:
    """Refuse a folder that holds studies of another store.

    Raises:
        OutputError: says what to type.
    """
    others = {one["store"] for one in _earlier(folder).values()} - {str(store)}
    if others := [other for other in others if Path(other).absolute() != Path(store).absolute()]:
        raise OutputError(f"{folder} holds studies of another store, {others[0]}. Type another folder: out=NAME")


def figure(result: Ablation | Study) -> "Figure":
    """Draw one study: a curve over layers, a grid of heads with the strongest of them, or bars.

    Raises:
        BadInput: several studies, which are as many figures.
    """
    first, *others = _studies(result)
    if others:
        raise BadInput(
            f"{1 + len(others)} studies are as many figures. Type found.studies[0].figure(), or found.save(FOLDER)"
        )
    return _figure(first)


def html(result: Ablation | Study) -> str:
    """Return the figures of all studies, each above its table, for notebooks."""
    return notebook_figures([(draw_study(one), one.title, one.summary()) for one in _studies(result)])


def draw_study(study: Study) -> bytes:
    """Return the figure of a study as a PNG."""
    return png(_figure(study))


def _figure(study: Study) -> "Figure":
    bars = study.effects[:BARS]
    tall = TALL if study.name in ("layers", "last", "heads") else max(1.6, BAR * (len(bars) + 1) + 0.5)
    with canvas(WIDE, HEAD + tall + FOOT) as sheet:
        _title(sheet, study)
        if study.name in ("layers", "last"):
            _curve(sheet.axes(0.75, HEAD, WIDE - 2.45, tall), study)
        elif study.name == "heads":
            _grid(sheet.axes(0.75, HEAD, 4.1, tall), study)
            _strongest(sheet.axes(6.0, HEAD, WIDE - 6.75, tall), study)
        else:
            _bars(sheet.axes(3.6, HEAD, WIDE - 5.0, tall), study, bars)
    return sheet.figure


def _studies(result: Ablation | Study) -> tuple[Study, ...]:
    return result.studies if isinstance(result, Ablation) else (result,)


def _earlier(folder: Path) -> dict[str, dict[str, Any]]:
    """Return studies that a folder holds already, by the names of their figures."""
    try:
        content = read_json(folder / RESULT, "")
        studies = content["studies"] if content["schema"] == SCHEMA else []
        known = [one for one in studies if "store" in one and _question(one)]
        return {Path(one.get("figure", f"{_figure_name(one['name'], one['by'])}.png")).stem: one for one in known}
    except (ClipAnatomyError, KeyError, TypeError, AttributeError):
        return {}


def _title(sheet: Canvas, study: Study) -> None:
    sheet.text(0.25, 0.42, study.title, 15, fontweight="bold")
    setting = f"{study.images:,} images, {len(study.classes):,} classes ({study.column}), {study.model}"
    sheet.text(0.25, 0.72, shorten(f"Replaced by {study.baseline}. Accuracy on {setting}.", 125), 9, color=FAINT)
    foot = "Direct effects: nothing is run again, what the parts wrote into the embedding is replaced. Layers are counted from 0."
    if study.groups:
        foot += f" Worst group: of those of {LEAST_IMAGES} images or more."
    sheet.text(0.25, sheet.high - 0.16, foot, 8, color=FAINT)


def _curve(axes: "Axes", study: Study) -> None:
    """Accuracy over the number of layers that are replaced, from none to all."""
    every = (study.whole, *study.effects)
    last = study.name == "last"
    depth = len(study.effects)
    if last:  # from the left: the last 0 layers keep their heads, the last 1, … all of them
        every = tuple(reversed(every))
    places = list(range(len(every)))
    lines = [("all images", [100 * one.accuracy for one in every], INK, "o")]
    if study.groups:
        lines.append(("worst group", _worst(study, every), COSTS, "s"))
    for name, values, hue, marker in lines:
        axes.plot(places, values, color=hue, marker=marker, markersize=4.5, linewidth=1.8, label=name, clip_on=False)
    _names_at_end(
        axes, len(every) - 1, [(f"{name} {values[-1]:.1f}", values[-1], hue) for name, values, hue, _ in lines]
    )
    for place, value in zip(places[:-1], lines[0][1], strict=False):  # the last has the name of its line beside it
        if len(every) <= 16:
            shift, side = ((-5, 5), "right") if last else ((5, 5), "left")  # beside the line, which rises or falls
            axes.annotate(f"{value:.1f}", (place, value), shift, textcoords="offset points", fontsize=8, ha=side)
    chance = 100 / len(study.classes)
    axes.axhline(chance, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate("chance", (0, chance), (2, 3), textcoords="offset points", fontsize=8, color=FAINT)
    labels = [str(place) for place in places] if last else ["none", *(f"0–{at}" if at else "0" for at in range(depth))]
    step = 1 if depth <= 16 else 2 if depth <= 32 else 4
    axes.set_xticks(places[::step], labels[::step], fontsize=8.5)
    axes.set_xlim(-0.25, len(every) - 1 + 0.25)
    axes.set_xlabel("last layers that keep their heads" if last else "layers whose heads are replaced", labelpad=6)
    axes.set_ylim(0, 105)
    axes.set_ylabel("accuracy, %")
    axes.yaxis.grid(True, color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _names_at_end(axes: "Axes", place: int, lines: list[tuple[str, float, str]]) -> None:
    """Draw the name of each line at its right end, apart from each other."""
    taken: list[float] = []
    for name, value, hue in lines:
        at = value
        while any(abs(at - other) < 6 for other in taken):
            at = min(taken) - 6 if at <= min(taken) else at + 6
        taken.append(at)
        axes.annotate(name, (place, at), (10, 0), textcoords="offset points", fontsize=9, color=hue, va="center", fontweight="bold")  # fmt: skip


def _grid(axes: "Axes", study: Study) -> None:
    """Change of every head alone."""
    pairs = {one.selection.heads[0]: one.change for one in study.effects}
    layers = sorted({layer for layer, _ in pairs})
    heads = max(head for _, head in pairs) + 1
    values = torch.tensor([[pairs.get((layer, head), 0.0) for head in range(heads)] for layer in layers])
    limit = max(float(values.abs().max()), 1e-9)
    draw_grid(axes, values, limit)
    rise = 1 if len(layers) <= 16 else 2
    axes.set_yticks(range(0, len(layers), rise), [str(layer) for layer in layers[::rise]])
    axes.tick_params(labelsize=8.5)
    axes.set_xlabel(
        f"head   (blue costs, orange helps; full colour: ±{100 * limit:.2f} points)", fontsize=8.5, labelpad=6
    )
    axes.set_ylabel("layer")


def _strongest(axes: "Axes", study: Study) -> None:
    """Return the heads whose loss costs most, and those whose loss helps most."""
    ranked = study.ranked
    some = list(ranked) if len(ranked) <= 14 else [*ranked[:10], *ranked[-4:]]
    _changes(axes, some, [one.description for one in some])
    axes.set_xlabel("change of accuracy, points (line: 95 %)", fontsize=8.5, labelpad=6)
    if len(some) < len(ranked):
        axes.axhline(9.5, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)))


def _changes(axes: "Axes", some: list[Effect], names: list[str]) -> None:
    places = range(len(some))
    change = [100 * one.change for one in some]
    errors = [100 * one.error for one in some]
    axes.barh(places, change, 0.66, color=[HELPS if value > 0 else COSTS for value in change])
    axes.errorbar(change, places, xerr=errors, fmt="none", ecolor=INK, elinewidth=0.9)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(places, names, fontsize=8.5)
    axes.set_ylim(len(some) - 0.4, -0.6)
    edge = max([abs(a) + b for a, b in zip(change, errors, strict=True)] + [0.1])
    axes.set_xlim(-1.08 * edge, 1.08 * edge)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _worst(study: Study, every: Sequence[Effect]) -> list[float]:
    """Accuracy of the worst group of each set, in percent."""
    worst = [study.worst(one) for one in every]
    return [100 * one["accuracy"] for one in worst if one is not None]


def _bars(axes: "Axes", study: Study, some: tuple[Effect, ...]) -> None:
    """Accuracy of each set, the whole model on top; the worst group as a mark."""
    every = [study.whole, *some]
    names = ["nothing", *(shorten(one.description, 42) for one in some)]
    places = range(len(every))
    axes.barh(places, [100 * one.accuracy for one in every], 0.62, color=[FAINT, *[COSTS] * len(some)], alpha=0.75)
    for place, one in zip(places, every, strict=True):
        label = f"{100 * one.accuracy:.1f}" + (
            "" if one is study.whole else f"  ({100 * one.change:+.1f})".replace("-", "−")
        )
        axes.annotate(label, (100 * one.accuracy, place), (5, 0), textcoords="offset points", fontsize=8.5, va="center", bbox={"color": "white", "pad": 0.5})  # fmt: skip
    if study.groups:
        axes.plot(_worst(study, every), places, linestyle="none", marker="D", markersize=5, color=HELPS, markeredgecolor="white", clip_on=False, zorder=4)  # fmt: skip
    axes.axvline(100 * study.whole.accuracy, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(places, names, fontsize=8.5)
    axes.set_ylim(len(every) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy, %" + ("   (◆ worst group)" if study.groups else ""), fontsize=8.5, labelpad=6)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
