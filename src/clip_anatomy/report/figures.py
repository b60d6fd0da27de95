"""What all figures share: a canvas measured in inches, fonts, colours, a grid of heads, PNG. Matplotlib is imported when something is drawn."""

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import MissingExtra
from clip_anatomy.images.fonts import known_families
from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.report.palette import NO, YES, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FAINT", "INK", "LINE", "NO_INK", "PLAIN", "YES_INK", "Canvas", "canvas", "draw_grid", "draw_text_bars", "ink", "need_matplotlib", "png", "ticks"]  # fmt: skip

INK, FAINT, LINE = "#1f2328", "#6b7280", "#d8dbe0"
YES_INK, NO_INK = ("#{:02x}{:02x}{:02x}".format(*rgb) for rgb in (YES, NO))
PLAIN: dict[str, Any] = {"parse_math": False}  # names of classes and texts may hold a $
DPI = 120
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "text.hinting": "none",
    "hatch.linewidth": 0.8,
}


def need_matplotlib() -> None:
    """Raise MissingExtra if figures cannot be drawn; called before any work starts."""
    try:
        import_module("matplotlib.figure")
    except ImportError as e:
        raise MissingExtra("matplotlib", "figures") from e


@dataclass(frozen=True)
class Canvas:
    """Hold a figure whose places are inches from its upper left corner.

    Attributes:
        figure: matplotlib's figure.
        wide: its width in inches.
        high: its height in inches.
    """

    figure: "Figure"
    wide: int | float
    high: int | float

    def axes(self, left: int | float, top: int | float, wide: int | float, tall: int | float) -> "Axes":
        """Add a panel by its upper left corner and size."""
        return self.figure.add_axes(
            (left / self.wide, 1 - (top + tall) / self.high, wide / self.wide, tall / self.high)
        )

    def text(self, left: int | float, top: int | float, text: str, size: int | float = 10.0, **more: Any) -> None:
        """Write a line whose foot is `top` inches below the upper edge."""
        self.figure.text(left / self.wide, 1 - top / self.high, text, fontsize=size, **PLAIN, **more)


@contextmanager
def canvas(wide: int | float, high: int | float) -> Generator[Canvas]:
    """Yield an empty figure of `wide` × `high` inches; what is drawn inside has the style of all figures."""
    need_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    families = ["DejaVu Sans", *known_families(installed)]
    with rc_context({**STYLE, "font.family": families}):
        yield Canvas(Figure(figsize=(wide, high), dpi=DPI, facecolor="white"), wide, high)


def png(figure: "Figure") -> bytes:
    """Return a figure as a PNG."""
    from matplotlib import rc_context

    file = BytesIO()
    with rc_context(STYLE), warnings.catch_warnings():  # a letter that no installed font has is drawn as a box
        warnings.filterwarnings("ignore", message=".*Glyph.*missing from.*")
        figure.savefig(file, format="png", metadata={"Software": "clip-anatomy"}, pil_kwargs={"compress_level": 4})
    return file.getvalue()


def draw_grid(axes: "Axes", values: Float[Tensor, "layer head"], limit: float) -> None:
    """Draw values by layer (downwards) and head in the two colours, with lines between the cells."""
    layers, heads = values.shape
    edges = (-0.5, heads - 0.5, layers - 0.5, -0.5)
    axes.imshow(colour(values, limit), aspect="auto", interpolation="nearest", extent=edges)
    axes.vlines([x + 0.5 for x in range(heads - 1)], -0.5, layers - 0.5, color=LINE, linewidth=0.5)
    axes.hlines([y + 0.5 for y in range(layers - 1)], -0.5, heads - 0.5, color=LINE, linewidth=0.5)
    axes.set_xticks(ticks(heads))
    axes.tick_params(length=0)


def draw_text_bars(axes: "Axes", texts: Sequence[tuple[str, float]], rows: int, most: float, length: int) -> None:
    """Draw a sparse sum of texts: each shortened to `length`, then a bar of its weight; places for `rows`, `most` the sheet's largest weight."""
    axes.barh(range(len(texts)), [weight for _, weight in texts], color=YES_INK, height=0.7)
    axes.set_xlim(0, most * 1.25)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks(range(len(texts)), [shorten(text, length) for text, _ in texts], **PLAIN)
    axes.tick_params(length=0)
    axes.set_xticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    for at, (_, weight) in enumerate(texts):
        axes.text(weight + most * 0.01, at, f"{weight:.2f}", va="center", fontsize=8, color=INK)


def ticks(count: int) -> list[int]:
    """Return the places to number, so that numbers do not touch."""
    step = 1 if count <= 12 else 2 if count <= 24 else 4
    return list(range(0, count, step))


def ink(value: int | float) -> str:
    """Return the colour of a signed number."""
    return YES_INK if value >= 0 else NO_INK
