"""Pages from templates: every value is escaped unless a template made it, and style and scripts are in the page, so that one file can be mailed."""

import base64
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.split.picture_explanation import signed

__all__ = ["data_uri", "encoded", "fragment", "framed", "notebook_figures", "page", "percent", "spaced", "within"]

FOLDER = Path(__file__).parent / "templates"
LOSSLESS = 160  # pictures up to this side are drawings: stored without loss


def page(template: str, **values: Any) -> str:
    """Return a whole page.

    Args:
        template: file name in `report/templates`.
        **values: what it shows; strings are escaped.
    """
    return _environment().get_template(template).render(values)


def fragment(template: str, macro: str, *values: Any) -> Markup:
    """Return what one macro of a template makes, safe to be put into a page: for pages that grow picture by picture."""
    return Markup(getattr(_environment().get_template(template).module, macro)(*values))


def notebook_figures(figures: Sequence[tuple[bytes, str, str]]) -> str:
    """Return drawings with their numbers below, as a notebook shows a result.

    Args:
        figures: PNG, what it shows, and text below it.
    """
    return fragment("macros.html", "figures", [(data_uri(png), title, text) for png, title, text in figures])


def framed(html: str) -> str:
    """Return a page inside a frame, as a notebook shows it: its style and scripts stay its own."""
    return fragment("macros.html", "framed", html)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "percent": percent,
        "shorten": shorten,
        "signed": signed,
        "spaced": spaced,
        "within": within,
        "basename": _basename,
    }
    known: dict[str, Any] = {"asset": _asset}
    made.filters.update(filters)
    made.globals.update(known)
    return made


def _basename(label: str) -> str:
    return Path(label).name or label


def _asset(name: str) -> Markup:
    """Return a style sheet or script of this package, as it is."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def encoded(image: Image.Image, quality: int = 85, lossless: int = LOSSLESS, **options: Any) -> bytes:
    """Encode an image for a page: PNG if it is small or partly transparent, JPEG if it is a photograph.

    Args:
        image: any mode that JPEG can be made of.
        quality: of JPEG.
        lossless: sides up to this are PNG.
        **options: for Pillow's JPEG writer.
    """
    file = BytesIO()
    if image.mode == "RGBA" or max(image.size) <= lossless:
        image.save(file, "PNG", optimize=True)
    else:
        image.convert("RGB").save(file, "JPEG", quality=quality, optimize=True, **options)
    return file.getvalue()


def data_uri(file: bytes) -> str:
    """Return the bytes of a PNG or JPEG as an address that holds them."""
    kind = "png" if file.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def percent(share: float) -> str:
    """Return a share in whole percent, small ones with a decimal.

    Example:
        >>> percent(0.304), percent(0.002)
        ('30 %', '0.2 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.01 or share <= 0 else f"{100 * share:.1f} %"


def spaced(name: str) -> str:
    """Return a property or role as people write it.

    Example:
        >>> spaced("body_part")
        'body part'
    """
    return name.replace("_", " ")


def within(box: Sequence[float], canvas: Sequence[float]) -> str:
    """Return the CSS that puts a box where it lies in its canvas (both: top, left, bottom, right).

    Example:
        >>> within((0.0, 5.0, 10.0, 10.0), (0.0, 0.0, 10.0, 10.0))
        'top:0.000%;left:50.000%;height:100.000%;width:50.000%'
    """
    high, wide = canvas[2] - canvas[0], canvas[3] - canvas[1]
    top, left = (box[0] - canvas[0]) / high, (box[1] - canvas[1]) / wide
    return f"top:{top:.3%};left:{left:.3%};height:{(box[2] - box[0]) / high:.3%};width:{(box[3] - box[1]) / wide:.3%}"
