"""A contact sheet: all results in one PNG."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from clip_anatomy.report.search_pictures import SIDE, ResultPicture
from clip_anatomy.retrieval.ranking import Ranking

__all__ = ["contact_sheet"]

ACROSS = 6
GAP, LINE = 12, 17
PAPER, INK, SOFT = (251, 250, 248), (29, 33, 38), (93, 102, 112)
NO = (24, 100, 200)
LETTER = 7  # width of a letter, about


def contact_sheet(ranking: Ranking, query: Sequence[ResultPicture], results: Sequence[ResultPicture]) -> Image.Image:
    """Draw the pictures that were asked for in the first row, those that were found below, with rank, score, words and name.

    Args:
        ranking: what was found.
        query: pictures that were asked for.
        results: pictures that were found.
    """
    rows = -(-len(results) // ACROSS)
    cell = SIDE + GAP, SIDE + GAP + 2 * LINE + 4
    top = 2 * LINE + 3 * GAP + (cell[1] if query else 0)
    sheet = Image.new("RGB", (ACROSS * cell[0] + GAP, top + max(rows, 1) * cell[1] + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    letters = [ImageFont.load_default(size) for size in (17, 12)]
    room = sheet.width // LETTER
    draw.text((GAP, GAP), _cut(ranking.title, room - 30), INK, letters[0])
    shared = f" {ranking.shared_heading}: {ranking.shared_texts[0]}" if ranking.shared_texts else ""
    draw.text((GAP, GAP + LINE + 6), _cut(f"{ranking.comparison}.{shared}", room + 20), SOFT, letters[1])
    for place, one in enumerate(query[:ACROSS]):
        at = GAP + place * cell[0], 2 * LINE + 3 * GAP
        _put(sheet, one, at)
        draw.text((at[0], at[1] + SIDE + 3), _cut(f"{'unlike ' if one.unlike else ''}{one.name}", 33), INK, letters[1])
    for place, one in enumerate(results):
        at = GAP + place % ACROSS * cell[0], top + place // ACROSS * cell[1]
        _put(sheet, one, at)
        if one.hit is not None:
            under = one.hit.shared_texts[0] if one.hit.shared_texts else one.hit.row.label
            caption = f"{one.hit.rank}  {one.hit.score:.3f}  {under}"
            draw.text((at[0], at[1] + SIDE + 3), _cut(caption, 36), INK, letters[1])
            draw.text((at[0], at[1] + SIDE + 3 + LINE), _cut(one.name, 34), SOFT, letters[1])
    return sheet


def _put(sheet: Image.Image, one: ResultPicture, at: tuple[int, int]) -> None:
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
    sheet.paste(image, at)
    if one.unlike:
        draw.rectangle((*at, at[0] + image.width - 1, at[1] + image.height - 1), outline=NO, width=3)


def _cut(text: str, letters: int) -> str:
    # Pillow's own font knows Latin letters only.
    text = text.replace("−", "-").replace("“", '"').replace("”", '"').replace("σ", "sd")
    text = text if len(text) <= letters else text[: letters - 1] + "..."
    return text.encode("latin-1", "replace").decode("latin-1")
