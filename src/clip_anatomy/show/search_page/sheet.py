"""A contact sheet: all results in one PNG."""

from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from clip_anatomy.retrieval.ranking import Ranking
from clip_anatomy.show.palette import colour, limit_of
from clip_anatomy.show.search_page.gather import SIDE, Shown

__all__ = ["contact_sheet"]

ACROSS = 6
GAP, LINE = 12, 17
PAPER, INK, SOFT = (251, 250, 248), (29, 33, 38), (93, 102, 112)
LETTER = 7  # width of a letter, about


def contact_sheet(ranking: Ranking, query: Sequence[Shown], found: Sequence[Shown], *, maps: bool = False) -> bytes:
    """Draw the pictures that were asked for in the first row, those that were found below, with rank, score and name.

    Args:
        ranking: what was found.
        query: pictures that were asked for.
        found: pictures that were found.
        maps: draw over each which patches made it match.

    Returns:
        A PNG.
    """
    rows = -(-len(found) // ACROSS)
    cell = SIDE + GAP, SIDE + GAP + 2 * LINE + 4
    top = 2 * LINE + 3 * GAP + (cell[1] if query else 0)
    sheet = Image.new("RGB", (ACROSS * cell[0] + GAP, top + max(rows, 1) * cell[1] + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    letters = [ImageFont.load_default(size) for size in (15, 12)]
    room = sheet.width // LETTER
    draw.text((GAP, GAP), _cut(f"Like {ranking.query}", room), INK, letters[0])
    draw.text((GAP, GAP + LINE + 4), _cut(_how(ranking), room + 20), SOFT, letters[1])
    for place, one in enumerate(query[:ACROSS]):
        _put(sheet, one, (GAP + place * cell[0], 2 * LINE + 3 * GAP), None)
        draw.text((GAP + place * cell[0], 2 * LINE + 3 * GAP + SIDE + 3), _cut(one.name, 26), INK, letters[1])
    shown = [one.patches for one in found if maps and one.patches is not None]
    limit = limit_of(*shown) if shown else None
    for place, one in enumerate(found):
        at = GAP + place % ACROSS * cell[0], top + place // ACROSS * cell[1]
        _put(sheet, one, at, limit)
        if one.hit is not None:
            score = (
                f"{one.hit.rank}  {one.hit.score:+.3f}".replace("+", "")
                if one.hit.score >= 0
                else f"{one.hit.rank}  {one.hit.score:.3f}"
            )
            draw.text((at[0], at[1] + SIDE + 3), f"{score}  {_cut(one.hit.row.label, 14)}", INK, letters[1])
            draw.text((at[0], at[1] + SIDE + 3 + LINE), _cut(one.name, 27), SOFT, letters[1])
    file = BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _put(sheet: Image.Image, one: Shown, at: tuple[int, int], limit: float | None) -> None:
    draw = ImageDraw.Draw(sheet)
    if one.image is None:
        draw.rectangle((*at, at[0] + SIDE - 1, at[1] + SIDE - 1), fill=(236, 234, 229))
        draw.text((at[0] + 8, at[1] + SIDE // 2 - 8), "no picture", SOFT, ImageFont.load_default(12))
        return
    image = one.image.convert("RGB")
    scale = SIDE / max(image.size)
    image = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
        Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS,
    )
    if limit is not None and one.patches is not None:
        over = Image.fromarray(colour(one.patches, limit)).resize(image.size, Image.Resampling.BILINEAR)
        image = Image.alpha_composite(image.convert("RGBA"), over).convert("RGB")
    sheet.paste(image, at)


def _how(ranking: Ranking) -> str:
    names = ", ".join(f"{one.name}{f' ({one.why})' if one.why else ''}" for one in ranking.heads[:4])
    more = f" and {len(ranking.heads) - 4} more" if len(ranking.heads) > 4 else ""
    what = {
        "heads": f"in heads {names}{more}",
        "whole": "by the whole embedding",
        "without": f"without heads {names}{more}",
    }
    return what[ranking.mode] + (f", along {ranking.focus} only" if ranking.focus else "")


def _cut(text: str, letters: int) -> str:
    # Pillow's own font knows Latin letters only.
    text = text.replace("−", "-").replace("“", '"').replace("”", '"').replace("σ", "sd")
    text = text if len(text) <= letters else text[: letters - 1] + "..."
    return text.encode("latin-1", "replace").decode("latin-1")
