"""What `pairs` writes: a page where a word lights up its patches and a patch its words, a figure, all numbers as JSON."""

from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from clip_anatomy.atomic_output import REPORT, AtomicOutput, Kind, as_json
from clip_anatomy.report.figures import png
from clip_anatomy.report.html import framed, page
from clip_anatomy.report.pairs_figure import pairs_figure
from clip_anatomy.report.palette import NO, STRONGEST, YES, ValueGrid, limit_of
from clip_anatomy.report.shown_picture import view_of
from clip_anatomy.split.pair_sides import Side
from clip_anatomy.split.pairs import SCHEMA, Pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "KIND", "figure", "html", "write"]

NUMBERS, FIGURE = "pairs.json", "pairs.png"
KIND = Kind("pairs", NUMBERS, SCHEMA, (NUMBERS, FIGURE, REPORT))


def write(pairs: Pairs, output: AtomicOutput) -> None:
    """Write the same into an atomic output."""
    output.write(FIGURE, png(figure(pairs)))
    output.write(NUMBERS, as_json(pairs.to_dict()))
    output.write(REPORT, _page(pairs))


def figure(pairs: Pairs) -> "Figure":
    """Draw both sides, with what the strongest parts of one say of the other."""
    return pairs_figure(pairs)


def html(pairs: Pairs) -> str:
    """Return the page, in a frame for notebooks."""
    return framed(_page(pairs))


def _page(pairs: Pairs) -> str:
    values = pairs.values
    sums = (values.sum(1), values.sum(0))
    limits = [limit_of(one) if len(one) else 1.0 for one in sums]
    if pairs.a.kind == pairs.b.kind:  # one scale for like parts; a word says as much as many patches
        limits = [max(limits)] * 2
    layers = pairs.table("layers")[: pairs.a.views["layers"].count, : pairs.b.views["layers"].count]
    return page(
        "pairs.html",
        kind="pairs",
        script="pairs.js",
        title="Why these two are similar",
        pairs=pairs,
        sides=[_side(side, one, limit) for side, one, limit in zip((pairs.a, pairs.b), sums, limits, strict=True)],
        table=ValueGrid(values, limit_of(values) if values.numel() else 1.0),
        layers=ValueGrid(layers, limit_of(layers)) if layers.numel() else None,
        made_of=pairs.made_of(),
        rest=_rest(pairs),
    )


def _side(side: Side, sums: Float[Tensor, " part"], limit: float) -> dict[str, Any]:
    picture = None
    if side.picture is not None and side.geometry is not None:
        picture = view_of(side.picture.read(keep_mode=True), side.name, side.geometry)
    shown = [
        {"label": label, "value": value, "colour": css_colour(value, limit)}
        for label, value in zip(side.parts, sums.tolist(), strict=True)
    ]
    return {"kind": side.kind, "name": side.name, "grid": side.grid, "picture": picture, "parts": shown, "limit": limit}


def _rest(pairs: Pairs) -> list[tuple[str, float]]:
    """Return what remains of each side, with its share of the cosine with all of the other."""
    table, rows = pairs.table(), []
    kinds = [side.kind for side in (pairs.a, pairs.b)]
    names = kinds if kinds[0] != kinds[1] else [f"{order} {kinds[0]}" for order in ("first", "second")]
    for name, side, shares in ((names[0], pairs.a, table.sum(1)), (names[1], pairs.b, table.sum(0))):
        view = side.views["tokens"]
        rows += [(f"{view.labels[at]} of the {name}", float(shares[at])) for at in range(view.count, len(view.labels))]
    return rows


def css_colour(value: float, limit: float) -> str:
    """Return a signed number's colour as CSS.

    Example:
        >>> css_colour(0.5, 1.0)
        'rgb(224 90 0 / 0.43)'
    """
    share = min(abs(value) / max(limit, 1e-30), 1.0) * STRONGEST
    return f"rgb({' '.join(map(str, YES if value >= 0 else NO))} / {share:.2f})"
