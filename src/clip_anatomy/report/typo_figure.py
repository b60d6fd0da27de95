"""The figure of a repair of reading: attacked pictures, what is printed over them, and what the model says before and after."""

from typing import TYPE_CHECKING

from PIL import Image

from clip_anatomy.report.contact_sheet import Cell, SheetRow, contact_sheets

if TYPE_CHECKING:
    from clip_anatomy.studies.typo_repair import TypoExample, TypoRepair

__all__ = ["draw_typo"]


def draw_typo(result: "TypoRepair") -> bytes:
    """Draw attacked pictures that were put right above some that were not: a PNG."""
    held, search = result.effects[0], result.search
    right, wrong = ([one for one in result.examples if (one.after == one.right) == put] for put in (True, False))
    rows = [
        SheetRow("put right: wrong before, right with the heads held", [_cell(one) for one in right]),
        SheetRow("still wrong with the heads held", [_cell(one) for one in wrong]),
    ]
    attacked, clean = held.attacked, held.clean
    heads = ", ".join(f"{layer}.{head}" for layer, head in search.heads) or "no head"
    title = f"A wrong label printed: {attacked.before:.0%} to {attacked.after:.0%} right"
    under = (
        f"{result.store.manifest.model}, {heads} held; without a print {clean.before:.1%} to {clean.after:.1%}; {attacked.images:,} pictures; "
        f"chance {1 / len(search.tasks[0].classes):.0%}"
    )
    nothing = SheetRow("no attacked picture was wrong", [Cell(Image.new("RGB", (64, 64), "white"), "")])
    return contact_sheets(title, under, [row for row in rows if row.cells] or [nothing])[0]


def _cell(one: "TypoExample") -> Cell:
    """Return one picture with both answers above it; what is printed can be read in it."""
    return Cell(one.picture, f"{one.right}: said {one.before}, now {one.after}")
