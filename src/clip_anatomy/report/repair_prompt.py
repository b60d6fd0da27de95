"""A person in the loop: the suspected heads with pictures, what each answer does, until one is kept."""

import sys
from collections.abc import Iterator

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, ClipAnatomyError
from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.progress import note
from clip_anatomy.report.repair_screen import percent
from clip_anatomy.report.thumbnails import thumbnails
from clip_anatomy.store.store import Store
from clip_anatomy.studies.ablated_answers import ALONG, Silence, selects
from clip_anatomy.studies.cue_result import Found
from clip_anatomy.studies.examples import examples
from clip_anatomy.studies.repair import try_out

__all__ = ["ask", "check", "pictures", "read"]

WIDE, TALL = 10, 5  # characters of a small picture at a terminal: each is two pixels, one above the other
SHOWN = 6
UPPER = "▀"


def read(spec: str, opened: Store, found: Found) -> Silence:
    """What was typed as what to silence: "7.0,7.3+mlp=2", "role=background", "7.0,7.3 along cue".

    Raises:
        BadSpec: parts that do not exist, or that cannot be silenced along a cue.
        BadInput: a cue that was not said in words.
        StoreError: MLPs that the store does not hold.
    """
    words, along = _taken_apart(spec)
    if along and len(found.plan.cue) < 2:
        raise BadInput(f"{spec}: the cue is not known in words. Type --cue 'sky, water', or leave{ALONG} away")
    silence = Silence(Selection.parse(words, opened.manifest.layers, opened.manifest.heads, found.atlas), along)
    selects(opened, silence)
    return silence


def check(spec: str, opened: Store) -> None:
    """Refuse what cannot be silenced before the search begins; names of heads are known only after it.

    Raises:
        BadSpec: parts that do not exist, or that cannot be silenced along a cue.
        StoreError: MLPs that the store does not hold.
    """
    words, along = _taken_apart(spec)
    if "role=" not in words and "words=" not in words:
        selects(opened, Silence(Selection.parse(words, opened.manifest.layers, opened.manifest.heads), along))


def _taken_apart(spec: str) -> tuple[str, bool]:
    words = " ".join(spec.split())
    return words.removesuffix(ALONG), words.endswith(ALONG)


def ask(opened: Store, found: Found) -> Silence:
    """Ask which parts to silence, showing what each answer does on the validation half, until one is kept.

    Raises:
        BadInput: nobody answers.
    """
    silence = found.best.silence
    asked = f"Silence which? Enter takes {silence.told}; or type 7.0,7.3+mlp=2, role=ROLE, none: "
    while True:
        words = _answer(asked)
        try:
            silence = read(words, opened, found) if words else silence
            told = try_out(opened, found, silence)
        except ClipAnatomyError as error:
            note(f"{error}")
            continue
        old = found.before
        note(
            f"{silence.told}: on the pictures to choose on average {percent(old.average)} → {percent(told.average)}, worst group "
            f"{percent(old.worst)} → {percent(told.worst)}, mean over groups {percent(old.mean)} → {percent(told.mean)}"
        )
        if _answer("Keep this? Enter or y, or n to try others: ").lower() in ("", "y", "yes"):
            return silence
        asked = f"Silence which? Enter takes {silence.told}: "


def pictures(opened: Store, found: Found, page: Console) -> Iterator[Text | Table]:
    """The suspected parts with the pictures for which each speaks up most, drawn with characters; nothing without colours."""
    if not page.is_terminal or page.color_system not in ("truecolor", "256"):
        return
    suspects = found.suspected(SHOWN)[:SHOWN]
    each = 3 if page.width >= 6 * (WIDE + 1) + 24 else 2 if page.width >= 4 * (WIDE + 1) + 24 else 1
    seen = examples(opened, found, [one.part for one in suspects], each)
    rows = {row.id: row for one in seen for row in one.rows}
    small = {row.id: image for row, image, _ in thumbnails(rows.values()) if image is not None}
    if not small:
        return
    view = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    for one in suspects:
        cells = [Text(one.part.name + "\n" + shorten(one.role.replace("_", " "), 18))]
        for example in seen:
            if example.part == one.part:
                cells.append(Text(f"most\n“{shorten(example.text, 10)}”", style="dim"))
                cells += [_drawn(small[row.id]) if row.id in small else Text("?") for row in example.rows]
        view.add_row(*cells)
    yield Text()
    yield Text("Pictures to choose on, for which each speaks up most:")
    yield view


def _drawn(image: Image.Image) -> Text:
    """A picture in half blocks: the upper pixel is the letter, the lower one what stands behind it."""
    pixels = np.asarray(image.convert("RGB").resize((WIDE, 2 * TALL), Image.Resampling.BOX))
    drawn = Text()
    for row in range(TALL):
        for upper, lower in zip(pixels[2 * row].tolist(), pixels[2 * row + 1].tolist(), strict=True):
            drawn.append(UPPER, style=f"rgb({','.join(map(str, upper))}) on rgb({','.join(map(str, lower))})")
        drawn.append("\n")
    return drawn


def _answer(question: str) -> str:
    """One line that a person typed; the question goes to stderr."""
    print(question, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        print(file=sys.stderr)
        raise BadInput("nobody answered. Type --yes to silence what is suggested, or --select 7.0,7.3")
    return line.strip()
