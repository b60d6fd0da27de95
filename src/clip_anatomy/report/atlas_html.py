"""Small pieces of HTML that both pages of an atlas use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from clip_anatomy.naming.atlas import Atlas, AtlasHead, Seen
from clip_anatomy.naming.roles import MIXED, UNNAMED, Role

__all__ = ["Shown", "bar", "document", "note", "percent", "pictures", "pill", "place_of", "swatches", "words"]

FOLDER = Path(__file__).parent / "assets"
HUES = 14  # further roles take the same hues again, darker


@dataclass(frozen=True)
class Shown:
    """An atlas and its pictures, ready to be drawn.

    Attributes:
        atlas: the atlas.
        pictures: row of the store → address of its thumbnail, relative to the index page; "" where there is none.
        missing: why pictures are missing, each reason once.
        hues: role → number of its colour.
    """

    atlas: Atlas
    pictures: Mapping[int, str]
    missing: Sequence[str] = ()
    hues: Mapping[str, int] = field(default_factory=dict[str, int])

    @staticmethod
    def of(atlas: Atlas, pictures: Mapping[int, str], missing: Sequence[str] = ()) -> "Shown":
        """Give every named role a colour, the commonest first, so that these differ most."""
        named = [role for role in atlas.roles if role not in (UNNAMED, MIXED)]
        return Shown(atlas, pictures, missing, {role: at for at, role in enumerate(named)})


def document(title: str, body: str, *, up: str = "", script: str = "") -> str:
    """A whole page. Style and script are in it, so that it can be mailed alone.

    Args:
        title: of the window.
        body: HTML.
        up: path from the page to the folder of the index page.
        script: JavaScript.
    """
    style = (FOLDER / "atlas.css").read_text(encoding="utf-8")
    code = f"<script>{script}</script>" if script else ""
    return f"""<!doctype html>
<html lang="en" data-up="{escape(up)}"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="clip-anatomy"><title>{escape(title)}</title><link rel="icon" href="data:,">
<style>{style}</style>
<body>{body}{code}</body></html>
"""


def swatches(shown: Shown) -> str:
    """A style rule per role: `.r3 { --hue: … }`."""
    count = max(1, min(len(shown.hues), HUES))
    rules = [
        f".r{at}{{--hue:{(25 + 360 * (at % HUES) / count) % 360:.0f};--deeper:{at // HUES * 0.14:.2f}}}"
        for at in shown.hues.values()
    ]
    return f"<style>{''.join(rules)}</style>"


def kind(role: Role, shown: Shown) -> str:
    """Class of a role: its colour, or that it has none."""
    return f"r{shown.hues[role.name]}" if role.name in shown.hues else role.name


def pill(role: Role, shown: Shown) -> str:
    """The name of a role on its colour, with how sure it is."""
    sure = f" <small>{percent(role.confidence)}</small>" if role.named else ""
    return f'<span class="pill {kind(role, shown)}">{words(role.name)}{sure}</span>'


def words(name: str) -> str:
    """A property or role as people write it, safe in HTML.

    Example:
        >>> words("body_part")
        'body part'
    """
    return escape(name.replace("_", " "))


def percent(share: float) -> str:
    """A share in whole percent.

    Example:
        >>> percent(0.304), percent(0.002)
        ('30 %', '0.2 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.01 or share <= 0 else f"{100 * share:.1f} %"


def bar(share: float, label: str, css: str = "", until: float | None = None) -> str:
    """A bar of a share, its number beside it; a mark where more would be possible."""
    mark = "" if until is None else f'<i class="until" style="left:{100 * min(until, 1):.1f}%"></i>'
    width = 100 * min(max(share, 0), 1)
    return (
        f'<span class="bar {css}" role="img" aria-label="{escape(label)}" title="{escape(label)}">'
        f'<i style="width:{width:.1f}%"></i>{mark}</span>'
    )


def pictures(seen: Sequence[Seen], shown: Shown, up: str = "", most: int | None = None) -> str:
    """A strip of thumbnails."""
    return f'<span class="strip">{"".join(_picture(one, shown, up) for one in seen[:most])}</span>'


def _picture(one: Seen, shown: Shown, up: str) -> str:
    address = shown.pictures.get(one.row, "")
    label = f"{one.id}{f' ({one.label})' if one.label else ''}: {one.value:+.4f}".replace("-0", "−0")
    if not address:
        return f'<span class="gone" title="{escape(label)}, no picture">?</span>'
    return f'<img loading="lazy" width="72" height="72" src="{escape(up + address)}" alt="{escape(one.label or one.id)}" title="{escape(label)}">'


def place_of(head: AtlasHead) -> str:
    """File of a head's page, from the index page."""
    return f"heads/{head.layer:02d}-{head.head:02d}.html"


def note(text: str) -> str:
    """A line that a reader must see."""
    return f'<p class="note">{escape(text)}</p>'
